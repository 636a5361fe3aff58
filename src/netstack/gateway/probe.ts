/**
 * Which of a VM's assigned IPv6 addresses does it use? It is asked (RFC 4861 §7.2.2), until it has said so or spoken from one.
 *
 * Theory. An address is assigned to a VM whether or not it takes it: it may speak no DHCPv6, or no IPv6 at all. Names and published ports lead only
 * where somebody is, since packets to an address that a guest does not have are dropped by it in silence. What was heard is in the bindings;
 * after a restart of the data plane nothing was, and a VM that only serves says nothing by itself. So its reserved address and the one
 * that its MAC makes are solicited: with the next tick after it was attached, then less and less often, and no more once one was heard.
 * Never does: anything with the answer (the guard hears it).
 */
import { type Arena, SLOT_FRAME } from '../arena.ts'
import type { Bindings } from '../switch/bindings.ts'
import { ROLE } from '../switch/port.ts'
import type { Ports } from '../switch/ports.ts'
import { Address } from '../wire/address.ts'
import { ETHERNET } from '../wire/ethernet.ts'
import * as icmpv6 from '../wire/icmpv6.ts'
import * as ipv6 from '../wire/ipv6.ts'
import { IPV6 } from '../wire/ipv6.ts'
import * as ndp from '../wire/ndp.ts'
import type { Out } from './out.ts'

/** ms: so often in the beginning, while the VM starts; then doubled from one to the other. */
const FIRST_INTERVAL = 1000
const FIRST_ONES = 8
const LAST_INTERVAL = 256_000

export interface ProbeConfig {
  readonly p0: number
  readonly p1: number
  readonly linkLocal: Address
  readonly gatewayHi: number
  readonly gatewayLo: number
}

export class NeighbourProbe {
  readonly #b: Uint8Array
  readonly #out: Out
  readonly #ports: Ports
  readonly #bindings: Bindings
  readonly #config: ProbeConfig
  readonly #slot: number
  readonly #dueAt: Float64Array
  readonly #interval: Float64Array
  readonly #asked: Int32Array
  readonly #target = new Address()

  constructor(arena: Arena, out: Out, ports: Ports, bindings: Bindings, config: ProbeConfig) {
    this.#b = arena.bytes
    this.#out = out
    this.#ports = ports
    this.#bindings = bindings
    this.#config = config
    this.#slot = arena.alloc(SLOT_FRAME + ETHERNET + IPV6 + ndp.NEIGHBOUR + ndp.LINK_OPTION) + SLOT_FRAME
    this.#dueAt = new Float64Array(ports.capacity).fill(Infinity)
    this.#interval = new Float64Array(ports.capacity)
    this.#asked = new Int32Array(ports.capacity)
  }

  attach(port: number): void {
    this.#interval[port] = FIRST_INTERVAL
    this.#asked[port] = 0
    this.#dueAt[port] = this.#ports.role[port] === ROLE.vm ? 0 : Infinity
  }

  detach(port: number): void {
    this.#dueAt[port] = Infinity
  }

  tick(now: number): void {
    const { end } = this.#ports
    for (let p = 0; p < end; p++) if (now >= this.#dueAt[p]) this.#ask(p, now)
  }

  #ask(port: number, now: number): void {
    const { macHi, macLo } = this.#ports
    const { p0, p1 } = this.#config
    const a = this.#ports.read6(port, this.#target)
    const reserved = (a.w0 | a.w1) !== 0
    const known = reserved && this.#speaks(a)
    if (reserved && !known) this.#solicit(port, a)
    a.set(p0, p1, ipv6.eui64Upper(macHi[port], macLo[port]), ipv6.eui64Lower(macLo[port]))
    const made = known || this.#speaks(a)
    if (!made) this.#solicit(port, a)
    // Once the reserved one is in use nothing else matters; without one, the other.
    this.#dueAt[port] = known || (made && !reserved) ? Infinity : now + this.#interval[port]
    if (++this.#asked[port] >= FIRST_ONES) this.#interval[port] = Math.min(LAST_INTERVAL, this.#interval[port] * 2)
  }

  #speaks(a: Address): boolean {
    return this.#bindings.speaks(a.w0, a.w1, a.w2, a.w3)
  }

  #solicit(port: number, a: Address): void {
    const b = this.#b
    const { linkLocal, gatewayHi, gatewayLo } = this.#config
    const l3 = this.#slot + ETHERNET
    const at = l3 + IPV6
    linkLocal.write(b, l3 + ipv6.SRC)
    // The solicited-node group (RFC 4291 §2.7.1).
    ipv6.setDst(b, l3, 0xff020000 | 0, 0, 1, 0xff000000 | (a.w3 & 0xffffff))
    const len = ndp.writeSolicitation(b, at, a.w0, a.w1, a.w2, a.w3, gatewayHi, gatewayLo)
    icmpv6.seal(b, l3, at, len)
    this.#out.sendSmall6(this.#slot, port, ipv6.ICMPV6, len, 255)
  }
}
