/**
 * Router advertisements (RFC 4861 §6.2; name servers and search list: RFC 8106): how guests learn the prefix, the MTU and the way out.
 *
 * Owns: the message, made once; when each port is told next: soon after it was attached, a few times in the beginning, then every few minutes with
 * jitter; at once when it asks. Each port is told by itself, so that a thousand VMs are not told at one moment.
 * On an isolated network the prefix is not on-link: guests send everything to the gateway, which refuses.
 * Never does: telling the host's interface anything; the host is nobody's guest.
 */
import { type Arena, SLOT_FRAME } from '../arena.ts'
import type { Host } from '../host.ts'
import { ROLE } from '../switch/port.ts'
import type { Ports } from '../switch/ports.ts'
import type { Address } from '../wire/address.ts'
import { put16 } from '../wire/bytes.ts'
import { ETHERNET } from '../wire/ethernet.ts'
import * as icmpv6 from '../wire/icmpv6.ts'
import * as ipv6 from '../wire/ipv6.ts'
import { IPV6 } from '../wire/ipv6.ts'
import * as ndp from '../wire/ndp.ts'
import type { Out } from './out.ts'

/** ms between two: at random within (§6.2.1: MinRtrAdvInterval, MaxRtrAdvInterval). */
const INTERVAL_MIN = 200_000
const INTERVAL_MAX = 600_000
/** §10: the first few come sooner. */
const INITIAL = 3
const INITIAL_INTERVAL = 16_000
/** Seconds: three times the longest interval (§6.2.1 AdvDefaultLifetime, RFC 8106 §5.1). */
const LIFETIME = 1800
const VALID = 86_400
const PREFERRED = 14_400
/** ff02::1 */
const ALL_NODES_W0 = 0xff020000 | 0

export interface AdvertiseConfig {
  readonly p0: number
  readonly p1: number
  /** False: somebody else says who the router is, or nobody. */
  readonly advertises: boolean
  /** The router's link-local address, and its MAC. */
  readonly linkLocal: Address
  readonly mac: { readonly hi: number; readonly lo: number }
  readonly services: Address
  readonly domain: string
  readonly mtu: number
  readonly isolated: boolean
  /** DHCPv6 gives addresses and the rest. */
  readonly managed: boolean
  /** All ports are one medium: one of them is told, and all hear it. */
  readonly shared: boolean
}

export class RouterAdvertiser {
  readonly #host: Host
  readonly #b: Uint8Array
  readonly #out: Out
  readonly #ports: Ports
  readonly #config: AdvertiseConfig
  readonly #slot: number
  readonly #length: number
  readonly #dueAt: Float64Array
  readonly #told: Int32Array

  constructor(host: Host, arena: Arena, out: Out, ports: Ports, config: AdvertiseConfig) {
    this.#host = host
    this.#b = arena.bytes
    this.#out = out
    this.#ports = ports
    this.#config = config
    const dns = new Uint8Array(16)
    config.services.write(dns, 0)
    const message = ndp.advertisement({
      ...config,
      dns,
      flags: config.managed ? ndp.MANAGED | ndp.OTHER : 0,
      lifetime: LIFETIME,
      onLink: !config.isolated,
      valid: VALID,
      preferred: PREFERRED,
    })
    this.#slot = arena.alloc(SLOT_FRAME + ETHERNET + IPV6 + message.length) + SLOT_FRAME
    this.#b.set(message, this.#slot + ETHERNET + IPV6)
    this.#length = message.length
    this.#dueAt = new Float64Array(ports.capacity).fill(Infinity)
    this.#told = new Int32Array(ports.capacity)
  }

  /** A VM is there: it is told with the next tick. */
  attach(port: number): void {
    this.#told[port] = 0
    this.#dueAt[port] = this.#config.advertises && this.#ports.role[port] === ROLE.vm ? 0 : Infinity
  }

  detach(port: number): void {
    this.#dueAt[port] = Infinity
  }

  /** Somebody asks: from the address whose words lie at `from` (:: when it has none yet). */
  solicited(port: number, from: number): void {
    if (!this.#config.advertises || this.#ports.role[port] !== ROLE.vm) return
    const b = this.#b
    const nobody = ipv6.isUnspecified(
      ipv6.src(b, from, 0),
      ipv6.src(b, from, 1),
      ipv6.src(b, from, 2),
      ipv6.src(b, from, 3),
    )
    const to = this.#slot + ETHERNET
    if (nobody) ipv6.setDst(b, to, ALL_NODES_W0, 0, 0, 1)
    else b.copyWithin(to + ipv6.DST, from + ipv6.SRC, from + ipv6.DST)
    this.#send(port, LIFETIME)
  }

  tick(now: number): void {
    const { end, port } = this.#ports
    for (let p = 0; p < end; p++) {
      if (now < this.#dueAt[p] || port[p] === null) continue
      const again = this.#told[p]++ < INITIAL
      const jitter = (this.#host.random32() >>> 0) / 2 ** 32
      this.#dueAt[p] = now + (again ? INITIAL_INTERVAL : INTERVAL_MIN + jitter * (INTERVAL_MAX - INTERVAL_MIN))
      if (!this.#config.shared || p === this.#first()) this.#tellAll(p, LIFETIME)
    }
  }

  /** The network ends: nobody is to go this way any more (§6.2.5). A router that is another's stays. */
  retire(): void {
    if (!this.#config.advertises || this.#config.shared) return
    const { end, port, role } = this.#ports
    for (let p = 0; p < end; p++) if (port[p] !== null && role[p] === ROLE.vm) this.#tellAll(p, 0)
  }

  #first(): number {
    const { end, port, role } = this.#ports
    for (let p = 0; p < end; p++) if (port[p] !== null && role[p] === ROLE.vm) return p
    return -1
  }

  #tellAll(port: number, lifetime: number): void {
    ipv6.setDst(this.#b, this.#slot + ETHERNET, ALL_NODES_W0, 0, 0, 1)
    this.#send(port, lifetime)
  }

  #send(port: number, lifetime: number): void {
    const b = this.#b
    const l3 = this.#slot + ETHERNET
    this.#config.linkLocal.write(b, l3 + ipv6.SRC)
    put16(b, l3 + IPV6 + ndp.LIFETIME, lifetime)
    icmpv6.seal(b, l3, l3 + IPV6, this.#length)
    this.#out.sendSmall6(this.#slot, port, ipv6.ICMPV6, this.#length, 255)
  }
}
