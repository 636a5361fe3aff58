/**
 * Published ports, the half that needs the daemon's rights: a bound socket, or a sentence that says why not.
 *
 * Owns: socket, bind, listen. Never does: keeping the descriptor (it goes to the data plane), serving clients.
 *
 * Theory. Binding in the daemon means that a busy port is refused before anything is created, and that root's VMs may have ports
 * below 1024. TCP listens at once: clients that come before the VM is up wait in the kernel's queue. SO_REUSEADDR lets a port be published again
 * while connections of a former VM are in TIME_WAIT; UDP goes without, as it would let two sockets share a port.
 * All addresses of both families (`*`) are one socket on [::] that takes IPv4 as well (IPV6_V6ONLY 0, ipv6(7)), so that a port which is busy in
 * either is busy; on a host without IPv6 it is one on 0.0.0.0. `::` alone is IPv6 alone.
 */
import { NoidError } from '../../errors.ts'
import { errno, errnoText } from '../../sys/errno.ts'
import { close } from '../../sys/fd.ts'
import {
  AF_INET,
  AF_INET6,
  bind,
  getsockname,
  IPPROTO_IPV6,
  IPV6_V6ONLY,
  listen,
  SO_REUSEADDR,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  SOL_SOCKET,
  setOption,
  socket,
} from '../../sys/socket.ts'
import type { PublishSpec } from '../contract.ts'
import { portHolder } from './holder.ts'

const BACKLOG = 4096
const ANY4 = '0.0.0.0'
const ANY6 = '::'
const BOTH = '*'

/** A published port as a backend writes it down. */
export interface PublishEntry {
  readonly spec: PublishSpec
  /** The real one, where the specification says 0. */
  readonly hostPort: number
}

export interface Bound {
  /** The caller's to close. */
  readonly fd: number
  readonly hostPort: number
}

/**
 * A non-blocking socket on the host address and port of `p`: listening (TCP) or bound (UDP). Port 0 becomes a free one.
 * @param holderOf names a VM of this daemon that holds a port, when it is one
 * @throws NoidError PORT_BUSY, PORT_DENIED, INVALID_INPUT (an address that this host does not have)
 */
export function bindPublished(
  p: Pick<PublishSpec, 'proto' | 'hostAddress' | 'hostPort'>,
  holderOf: (proto: 'tcp' | 'udp', address: string, port: number) => string | undefined = () => undefined,
): Bound {
  const { proto, hostAddress: address, hostPort: port } = p
  let r = open(proto, address === BOTH ? ANY6 : address, port, address !== BOTH)
  if (address === BOTH && (r === -errno.EAFNOSUPPORT || r === -errno.EADDRNOTAVAIL)) r = open(proto, ANY4, port, false)
  if (r >= 0) {
    const name = getsockname(r)
    if (typeof name === 'object' && name.family !== 'unix') return { fd: r, hostPort: name.port }
    close(r)
  }
  throw portRefused(r, p, r === -errno.EADDRINUSE ? holderOf(proto, address, port) : undefined)
}

/** Why a host port cannot be had. @param r −errno @param holder the VM of this daemon that holds it, when it is one */
export function portRefused(
  r: number,
  { proto, hostAddress: address, hostPort: port }: Pick<PublishSpec, 'proto' | 'hostAddress' | 'hostPort'>,
  holder?: string,
): NoidError {
  const all = address === BOTH || address === ANY4 || address === ANY6
  const where = { proto: proto.toUpperCase(), port, address: all ? 'this host' : address }
  switch (-r) {
    case errno.EADDRINUSE:
      return new NoidError('PORT_BUSY', { ...where, holder: holder ?? portHolder(proto, address, port) })
    case errno.EACCES:
    case errno.EPERM:
      return new NoidError('PORT_DENIED', where)
    case errno.EADDRNOTAVAIL:
      return new NoidError('INVALID_INPUT', {
        what: `${address} is not an address of this host`,
        hint: 'leave out HOSTIP to publish on all addresses; ip addr shows what there is',
      })
    default:
      return new NoidError('INTERNAL', { why: `${proto} port ${port} cannot be opened: ${errnoText(r)}` })
  }
}

/** The socket, or −errno with nothing left. */
function open(proto: 'tcp' | 'udp', address: string, port: number, onlyOne: boolean): number {
  const six = address.includes(':')
  const fd = socket(six ? AF_INET6 : AF_INET, (proto === 'tcp' ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK)
  if (fd < 0) return fd
  // The system's default (net.ipv6.bindv6only) may be either.
  let r = six ? setOption(fd, IPPROTO_IPV6, IPV6_V6ONLY, onlyOne ? 1 : 0) : 0
  if (r >= 0 && proto === 'tcp') r = setOption(fd, SOL_SOCKET, SO_REUSEADDR, 1)
  if (r >= 0) r = bind(fd, { family: six ? 'inet6' : 'inet', address, port })
  if (r >= 0 && proto === 'tcp') r = listen(fd, BACKLOG)
  if (r >= 0) return fd
  close(fd)
  return r
}

/** Do two wishes for one port stand in each other's way? Each: an address, 0.0.0.0 or :: for all of a family, * for all of both. */
export function addressesOverlap(a: string, b: string): boolean {
  if (a === b || a === BOTH || b === BOTH) return true
  if (a.includes(':') !== b.includes(':')) return false
  return [a, b].includes(a.includes(':') ? ANY6 : ANY4)
}
