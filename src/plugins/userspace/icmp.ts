/**
 * A raw ICMP socket for the data plane, which may not open one itself: the way to ping where net.ipv4.ping_group_range is
 * empty (icmp(7), raw(7)).
 */
import { AF_INET, IPPROTO_ICMP, SOCK_NONBLOCK, SOCK_RAW, setOptionBytes, socket } from '../../sys/socket.ts'

const SOL_RAW = 255
const ICMP_FILTER = 1
/** Pass echo replies (0), unreachable (3), time exceeded (11), parameter problem (12); a bit that is set filters its type out. */
const FILTER = ~((1 << 0) | (1 << 3) | (1 << 11) | (1 << 12))

/** Non-blocking; or −errno. */
export function openRawIcmp(): number {
  const fd = socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK, IPPROTO_ICMP)
  if (fd < 0) return fd
  const word = new Uint8Array(4)
  new DataView(word.buffer).setInt32(0, FILTER, true)
  setOptionBytes(fd, SOL_RAW, ICMP_FILTER, word)
  return fd
}
