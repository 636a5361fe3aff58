/**
 * Host ports that are published through portmap: kept by a bound socket, so that a busy one is refused before anything is
 * made and nobody else takes it later. Packets never reach the socket: portmap's rules turn them away before.
 *
 * A TCP socket is bound and does not listen: without rules, a client is refused at once instead of waiting for ever.
 */
import { NoidError } from '../../errors.ts'
import { errnoText } from '../../sys/errno.ts'
import { close } from '../../sys/fd.ts'
import { AF_INET, bind, getsockname, SOCK_DGRAM, SOCK_STREAM, socket } from '../../sys/socket.ts'
import type { PublishSpec } from '../contract.ts'
import { portRefused } from '../host/publisher.ts'

interface Held {
  readonly fd: number
  readonly spec: PublishSpec
}

export class HostPorts {
  readonly #held = new Map<string, Held>()

  /**
   * Keep the host port of `p`; 0 becomes a free one. Returns what is kept, with the port that it is.
   * @throws NoidError PORT_BUSY, PORT_DENIED, INVALID_INPUT (an address that this host does not have)
   */
  keep(p: PublishSpec): PublishSpec {
    const had = this.#held.get(p.id)
    if (had !== undefined) {
      if (same(had.spec, p)) return had.spec
      this.release(p.id)
    }
    const { proto, hostAddress: address, hostPort: port } = p
    const fd = socket(AF_INET, proto === 'tcp' ? SOCK_STREAM : SOCK_DGRAM)
    if (fd < 0) throw new NoidError('INTERNAL', { why: `no socket: ${errnoText(fd)}` })
    const r = bind(fd, { family: 'inet', address, port })
    const name = r < 0 ? r : getsockname(fd)
    if (typeof name === 'object' && name.family === 'inet') {
      const spec = { ...p, hostPort: name.port }
      this.#held.set(p.id, { fd, spec })
      return spec
    }
    close(fd)
    throw portRefused(r, p)
  }

  get = (id: string): PublishSpec | undefined => this.#held.get(id)?.spec

  of = (attachment: string): PublishSpec[] =>
    [...this.#held.values()].map((h) => h.spec).filter((s) => s.attachment === attachment)

  release(id: string): void {
    const h = this.#held.get(id)
    if (h === undefined) return
    close(h.fd)
    this.#held.delete(id)
  }

  close(): void {
    for (const id of [...this.#held.keys()]) this.release(id)
  }
}

const same = (had: PublishSpec, p: PublishSpec): boolean =>
  had.attachment === p.attachment &&
  had.proto === p.proto &&
  had.hostAddress === p.hostAddress &&
  (p.hostPort === 0 || p.hostPort === had.hostPort) &&
  had.guestPort === p.guestPort
