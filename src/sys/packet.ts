/**
 * Packet sockets: packet(7), linux/if_packet.h.
 *
 * A socket bound to one link that sees and sends its Ethernet frames, with the virtio_net_hdr in front (PACKET_VNET_HDR:
 * gso and unfinished checksums pass through, as on a TAP) and without what it sent itself (PACKET_IGNORE_OUTGOING).
 */
import { close } from './fd.ts'
import { declare, result, Scratch } from './libc.ts'
import {
  AF_PACKET,
  SO_RCVBUF,
  SO_RCVBUFFORCE,
  SOCK_NONBLOCK,
  SOCK_RAW,
  SOL_SOCKET,
  setOption,
  socket,
} from './socket.ts'

const c = { bind: declare<(fd: number, addr: number, len: number) => number>('int bind(int, uintptr_t, unsigned int)') }
const SOL_PACKET = 263
const PACKET_VNET_HDR = 15
const PACKET_IGNORE_OUTGOING = 23
/** In network byte order where the kernel wants it. */
const ETH_P_ALL = 0x0003
/** struct sockaddr_ll is 20 bytes: family, protocol, ifindex, hatype, pkttype, halen, addr[8]. */
const address = new Scratch(20)

/** Bind to a link and an EtherType (ETH_P_ALL for all). */
export function bindPacket(fd: number, ifindex: number, etherType: number): number {
  address.bytes.fill(0)
  address.setU16(0, AF_PACKET)
  address.view.setUint16(2, etherType)
  address.setI32(4, ifindex)
  return result(c.bind(fd, address.address, 20))
}

/**
 * A non-blocking raw packet socket bound to the link `ifindex` of the current network namespace. Needs CAP_NET_RAW there.
 * @param vnetHdr every frame carries a virtio_net_hdr (10 bytes) in front, both ways
 * @param receiveBuffer bytes; beyond net.core.rmem_max only with CAP_NET_ADMIN in the initial user namespace
 * @returns descriptor or −errno
 */
export function openPacket(ifindex: number, vnetHdr: boolean, receiveBuffer = 8 << 20): number {
  // Protocol 0: nothing arrives before the socket is bound to its link.
  const fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0)
  if (fd < 0) return fd
  if (setOption(fd, SOL_SOCKET, SO_RCVBUFFORCE, receiveBuffer) < 0) setOption(fd, SOL_SOCKET, SO_RCVBUF, receiveBuffer)
  let r = vnetHdr ? setOption(fd, SOL_PACKET, PACKET_VNET_HDR, 1) : 0
  if (r >= 0) r = setOption(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
  if (r >= 0) r = bindPacket(fd, ifindex, ETH_P_ALL)
  if (r < 0) {
    close(fd)
    return r
  }
  return fd
}
