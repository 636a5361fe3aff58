/**
 * Packet sockets: packet(7), linux/if_packet.h.
 *
 * A socket bound to one link that sees and sends its Ethernet frames, with the virtio_net_hdr in front (PACKET_VNET_HDR:
 * gso and unfinished checksums pass through, as on a TAP) and without what it sent itself (PACKET_IGNORE_OUTGOING).
 *
 * A receive buffer holds frames by what they cost the kernel, and without rights over the machine it has net.core.rmem_max at most, counted
 * twice: 120 frames of 64 KiB, and six before Linux 6.17 (208 KiB); a TAP has room for thousands. What does not fit is lost.
 * `openPackets` therefore opens several sockets as a group (PACKET_FANOUT_ROLLOVER): the kernel fills one until three quarters of its buffer are
 * used, then the next, round and round. Whoever reads them in that order, each until it is empty, has the frames in theirs.
 */
import { close } from './fd.ts'
import { declare, result, Scratch } from './libc.ts'
import {
  AF_PACKET,
  getOption,
  SO_RCVBUF,
  SO_RCVBUFFORCE,
  SOCK_NONBLOCK,
  SOCK_RAW,
  SOL_SOCKET,
  setOption,
  setOptionBytes,
  socket,
} from './socket.ts'

const c = { bind: declare<(fd: number, addr: number, len: number) => number>('int bind(int, uintptr_t, unsigned int)') }
const SOL_PACKET = 263
const PACKET_VNET_HDR = 15
const PACKET_FANOUT = 18
const PACKET_IGNORE_OUTGOING = 23
const FANOUT_ROLLOVER = 3
/** The kernel chooses the group's number. */
const FANOUT_UNIQUE_ID = 0x2000
/** As PACKET_IGNORE_OUTGOING, for the group (Linux 5.16). */
const FANOUT_IGNORE_OUTGOING = 0x4000
const SO_ATTACH_FILTER = 26
const SO_DETACH_FILTER = 27
const RECEIVE_BUFFER = 8 << 20
/** Bytes of receive buffer that a group tries for, in the kernel's count, and the most sockets it takes. */
const GROUP_BUFFER = 32 << 20
const GROUP_MAX = 32
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
 * @param force try to go beyond net.core.rmem_max
 * @param deaf with a filter that accepts nothing, until somebody takes it off (SO_DETACH_FILTER)
 * @returns descriptor or −errno
 */
export function openPacket(
  ifindex: number,
  vnetHdr: boolean,
  receiveBuffer = RECEIVE_BUFFER,
  force = true,
  deaf = false,
): number {
  // Protocol 0: nothing arrives before the socket is bound to its link.
  const fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0)
  if (fd < 0) return fd
  if (!force || setOption(fd, SOL_SOCKET, SO_RCVBUFFORCE, receiveBuffer) < 0)
    setOption(fd, SOL_SOCKET, SO_RCVBUF, receiveBuffer)
  let r = deaf ? acceptNothing(fd) : 0
  if (r >= 0 && vnetHdr) r = setOption(fd, SOL_PACKET, PACKET_VNET_HDR, 1)
  if (r >= 0) r = setOption(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
  if (r >= 0) r = bindPacket(fd, ifindex, ETH_P_ALL)
  if (r < 0) {
    close(fd)
    return r
  }
  return fd
}

/**
 * As openPacket, without any rights over the machine: as many sockets of one group as make up a large receive buffer.
 * @param each bytes to ask for at each socket
 * @returns descriptors in the order in which the kernel fills them (one alone where groups are not to be had), or −errno
 */
export function openPackets(ifindex: number, vnetHdr: boolean, each = RECEIVE_BUFFER): readonly number[] | number {
  const first = openPacket(ifindex, vnetHdr, each, false)
  if (first < 0) return first
  const fds = [first]
  const flags = FANOUT_ROLLOVER | FANOUT_IGNORE_OUTGOING
  const wanted = Math.min(GROUP_MAX, Math.ceil(GROUP_BUFFER / getOption(first, SOL_SOCKET, SO_RCVBUF)))
  if (wanted === 1 || setOption(first, SOL_PACKET, PACKET_FANOUT, (flags | FANOUT_UNIQUE_ID) << 16) < 0) return fds
  const group = getOption(first, SOL_PACKET, PACKET_FANOUT) & 0xffff
  while (fds.length < wanted) {
    const fd = openPacket(ifindex, vnetHdr, each, false, true)
    if (fd < 0) break
    if (setOption(fd, SOL_PACKET, PACKET_FANOUT, group | (flags << 16)) < 0) {
      close(fd)
      break
    }
    setOption(fd, SOL_SOCKET, SO_DETACH_FILTER, 0)
    fds.push(fd)
  }
  return fds
}

/** A classic BPF program that accepts nothing: struct sock_fprog, one instruction (RET 0). */
function acceptNothing(fd: number): number {
  const instruction = new Scratch(8)
  instruction.bytes.set([6, 0, 0, 0, 0, 0, 0, 0])
  const program = new Uint8Array(16)
  const v = new DataView(program.buffer)
  v.setUint16(0, 1, true)
  v.setBigUint64(8, BigInt(instruction.address), true)
  const r = setOptionBytes(fd, SOL_SOCKET, SO_ATTACH_FILTER, program)
  // The kernel has copied it.
  instruction.bytes.fill(0)
  return r
}
