/**
 * Published ports of a bridged network: who may have one, and the socket that keeps it.
 *
 * Packets go by DNAT. The bound socket, which the services hold, is there so that nobody else takes such a port, and that `who holds it` finds an
 * answer. Who comes to the socket all the same is a client at ::1, for whom the kernel has no DNAT: he is relayed to the VM, as on userspace.
 *
 * Owns: which entries somebody else has taken while nobody held them: their rules must not take the port away from him.
 * Never does: writing the wish down, rules, connections that are under way (bridge.ts).
 */
import { NoidError } from '../../errors.ts'
import { close } from '../../sys/fd.ts'
import type { NetworkSpec, PublishSpec } from '../contract.ts'
import type { Link } from '../dataplane/link.ts'
import { addressesOverlap, type Bound, bindPublished, type PublishEntry } from '../host/publisher.ts'
import { saved } from './netfilter.ts'
import { everywhere, takenBy } from './rules.ts'

type HolderOf = (proto: 'tcp' | 'udp', address: string, port: number) => string | undefined

export class Published {
  readonly #entries: ReadonlyMap<string, PublishEntry>
  readonly #spec: () => NetworkSpec
  readonly #holderOf: HolderOf
  readonly #taken = new Set<string>()

  /** @param holderOf the VM of another of our networks that publishes a port */
  constructor(entries: ReadonlyMap<string, PublishEntry>, spec: () => NetworkSpec, holderOf: HolderOf) {
    this.#entries = entries
    this.#spec = spec
    this.#holderOf = holderOf
  }

  /** Those that are this network's to lead: what the rules are made of. */
  get led(): readonly PublishSpec[] {
    return [...this.#entries.values()].flatMap(({ spec, hostPort }) =>
      this.#taken.has(spec.id) ? [] : [{ ...spec, hostPort }],
    )
  }

  /** Whose is the host port? */
  find(proto: 'tcp' | 'udp', address: string, port: number): PublishSpec | undefined {
    for (const { spec, hostPort } of this.#entries.values())
      if (spec.proto === proto && hostPort === port && addressesOverlap(spec.hostAddress, address)) return spec
    return undefined
  }

  /** Of a family that the network does not have nothing is taken. */
  #open(p: PublishSpec): Bound {
    const { ipv4, ipv6 } = this.#spec()
    const all = ipv6 === undefined ? '0.0.0.0' : ipv4 === false ? '::' : '*'
    return bindPublished(p.hostAddress === '*' ? { ...p, hostAddress: all } : p, this.#holderOf)
  }

  /**
   * The port's socket, if neither a program nor a rule has the port.
   * @throws NoidError as bindPublished
   */
  async bind(p: PublishSpec): Promise<Bound> {
    const rules = await Promise.all([saved(), this.#spec().ipv6 === undefined ? '' : saved('ip6tables')])
    const busy = (port: number): string | undefined => {
      for (const r of rules) {
        const holder = takenBy(r, { ...p, hostPort: port })
        if (holder !== undefined) return holder
      }
      return undefined
    }
    if (p.hostPort !== 0) {
      const holder = busy(p.hostPort)
      if (holder !== undefined)
        throw new NoidError('PORT_BUSY', {
          proto: p.proto.toUpperCase(),
          port: p.hostPort,
          address: everywhere(p.hostAddress) ? 'this host' : p.hostAddress,
          holder: this.#holderOf(p.proto, p.hostAddress, p.hostPort) ?? holder,
        })
      return this.#open(p)
    }
    // The kernel does not know which ports rules take away: such a one is kept until another is found.
    const passed: Bound[] = []
    try {
      for (;;) {
        const bound = this.#open(p)
        if (busy(bound.hostPort) === undefined) return bound
        passed.push(bound)
      }
    } finally {
      for (const { fd } of passed) close(fd)
    }
  }

  /** Hand a port's socket to the services. Owns `fd`. */
  give(services: Link, p: PublishSpec, fd: number): Promise<unknown> {
    const { id, proto, hostAddress, hostPort, guestAddress, guestAddress6, guestPort } = p
    const loopback6 = this.#spec().ipv6 !== undefined && ['*', '::', '::1'].includes(hostAddress)
    const told = { fds: 1, id, proto, hostAddress, hostPort, guestAddress, guestAddress6, guestPort } as const
    return services.give(loopback6 ? { op: 'publish', ...told } : { op: 'hold', fds: 1, id }, fd)
  }

  /**
   * After the services were started anew: sockets that they do not hold.
   * @param held by the services already
   * @param warn told of one that could not be had again
   * @returns whether somebody else has one
   */
  async restore(services: Link, held: readonly string[], warn: (message: string) => void): Promise<boolean> {
    for (const [id, { spec, hostPort }] of this.#entries) {
      if (!held.includes(id)) {
        try {
          const p = { ...spec, hostPort }
          await this.give(services, p, this.#open(p).fd)
        } catch (e) {
          if (!services.open) throw e
          this.#taken.add(id)
          warn(`${spec.proto} port ${hostPort} could not be published again: ${(e as Error).message}`)
          continue
        }
      }
      this.#taken.delete(id)
    }
    return this.#taken.size > 0
  }

  /** An entry is no more. */
  forget(id: string): void {
    this.#taken.delete(id)
  }
}
