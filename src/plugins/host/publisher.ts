/**
 * Published ports, the half that needs the daemon's rights: a bound socket, or a sentence that says why not.
 *
 * Owns: socket, bind, listen. Never does: keeping the descriptor (it goes to the data plane), serving clients.
 *
 * Theory. Binding in the daemon means that a busy port is refused before anything is created, and that root's VMs may have ports
 * below 1024. TCP listens at once: clients that come before the VM is up wait in the kernel's queue. SO_REUSEADDR lets a port be published again
 * while connections of a former VM are in TIME_WAIT; UDP goes without, as it would let two sockets share a port.
 */

import { NoidError } from '../../errors.ts'
import { errno, errnoText } from '../../sys/errno.ts'
import { close } from '../../sys/fd.ts'
import {
  AF_INET,
  bind,
  getsockname,
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
  const where = { proto: proto.toUpperCase(), port, address: address === '0.0.0.0' ? 'this host' : address }
  const fd = socket(AF_INET, (proto === 'tcp' ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK)
  if (fd < 0) throw new NoidError('INTERNAL', { why: `no socket: ${errnoText(fd)}` })
  let r = proto === 'tcp' ? setOption(fd, SOL_SOCKET, SO_REUSEADDR, 1) : 0
  if (r >= 0) r = bind(fd, { family: 'inet', address, port })
  if (r >= 0 && proto === 'tcp') r = listen(fd, BACKLOG)
  const name = r < 0 ? r : getsockname(fd)
  if (typeof name === 'object' && name.family === 'inet') return { fd, hostPort: name.port }
  close(fd)
  switch (-r) {
    case errno.EADDRINUSE:
      throw new NoidError('PORT_BUSY', {
        ...where,
        holder: holderOf(proto, address, port) ?? portHolder(proto, address, port),
      })
    case errno.EACCES:
    case errno.EPERM:
      throw new NoidError('PORT_DENIED', where)
    case errno.EADDRNOTAVAIL:
      throw new NoidError('INVALID_INPUT', {
        what: `${address} is not an address of this host`,
        hint: 'leave out HOSTIP to publish on all addresses; ip addr shows what there is',
      })
    default:
      throw new NoidError('INTERNAL', { why: `${proto} port ${port} cannot be opened: ${errnoText(r)}` })
  }
}
