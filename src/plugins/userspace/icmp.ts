/**
 * Raw ICMP and ICMPv6 sockets for the data plane, which may not open one itself: the way to ping where net.ipv4.ping_group_range is
 * empty (icmp(7), raw(7), RFC 3542 §3). Which messages they pass the data plane says itself.
 */
import { AF_INET, AF_INET6, IPPROTO_ICMP, IPPROTO_ICMPV6, SOCK_NONBLOCK, SOCK_RAW, socket } from '../../sys/socket.ts'

/** Non-blocking; or −errno. */
export const openRawIcmp = (family: 4 | 6): number =>
  family === 4
    ? socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK, IPPROTO_ICMP)
    : socket(AF_INET6, SOCK_RAW | SOCK_NONBLOCK, IPPROTO_ICMPV6)
