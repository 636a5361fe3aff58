/**
 * ICMP errors of the gateway to its guests (RFC 792; what may be said when: RFC 1812 §4.3.2 and §4.3.3).
 *
 * Owns: building them, the rate of each port, the rules about which packets never get one. A guest is told about its own
 * packet as it sent it: NAT is invisible in what is quoted.
 * Works in a slot of its own, so that a relay may call it with a half-made packet in the transmit slot.
 */
import { type Arena, SLOT_FRAME } from '../arena.ts'
import type { FlowTable } from '../flow/table.ts'
import type { Frame } from '../frame.ts'
import type { Host } from '../host.ts'
import { DROP, type Drops } from '../trace/drops.ts'
import { put16, put32 } from '../wire/bytes.ts'
import { ETHERNET } from '../wire/ethernet.ts'
import * as icmp from '../wire/icmp.ts'
import * as ipv4 from '../wire/ipv4.ts'
import { IPV4 } from '../wire/ipv4.ts'
import type { Out } from './out.ts'

/** An error is at most 576 bytes long with everything (RFC 1812 §4.3.2.3). */
const QUOTE_MAX = 576 - IPV4 - icmp.ICMP
/** Of a flow whose packet is gone: its IP header and 8 bytes. */
const QUOTE_OF_FLOW = IPV4 + 8

export class IcmpErrors {
  readonly #host: Host
  readonly #b: Uint8Array
  readonly #out: Out
  readonly #flows: FlowTable
  readonly #drops: Drops
  readonly #gateway: number
  readonly #subnetBroadcast: number
  readonly #slot: number
  // A bucket of tokens for each port.
  readonly #perSecond: number
  readonly #tokens: Float64Array
  readonly #filledAt: Float64Array

  constructor(
    host: Host,
    arena: Arena,
    out: Out,
    flows: FlowTable,
    drops: Drops,
    ports: number,
    gateway: number,
    subnetBroadcast: number,
    perSecond: number,
  ) {
    this.#host = host
    this.#b = arena.bytes
    this.#out = out
    this.#flows = flows
    this.#drops = drops
    this.#gateway = gateway
    this.#subnetBroadcast = subnetBroadcast
    this.#slot = arena.alloc(SLOT_FRAME + ETHERNET + 576) + SLOT_FRAME
    this.#perSecond = perSecond
    this.#tokens = new Float64Array(ports).fill(perSecond)
    this.#filledAt = new Float64Array(ports)
  }

  /** @param from4 who reports it; 0: the gateway */
  about(f: Frame, type: number, code: number, info: number, from4: number): void {
    const b = this.#b
    const { l3 } = f
    const src = ipv4.src(b, l3)
    const dst = ipv4.dst(b, l3)
    if (src === ipv4.ANY || ipv4.isMulticast(src) || ipv4.isReserved(src)) return
    if (ipv4.isMulticast(dst) || dst === ipv4.LIMITED_BROADCAST || dst === this.#subnetBroadcast) return
    if (ipv4.fragmentOffset(b, l3) !== 0) return
    if (f.proto === ipv4.ICMP && f.l4len >= icmp.ICMP && icmp.isError(icmp.type(b, f.l4))) return
    if (!this.#allowed(f.port)) return
    const quote = Math.min(QUOTE_MAX, f.l4 - l3 + f.l4len)
    const at = this.#slot + ETHERNET + IPV4
    b.copyWithin(at + icmp.ICMP, l3, l3 + quote)
    this.#send(f.port, from4, src, type, code, info, quote)
  }

  aboutFlow(i: number, type: number, code: number, info: number, from4: number, second: number): void {
    const flows = this.#flows
    const port = flows.port[i]
    if (!this.#allowed(port)) return
    const b = this.#b
    const proto = flows.proto[i]
    const at = this.#slot + ETHERNET + IPV4 + icmp.ICMP
    ipv4.write(b, at, QUOTE_OF_FLOW, 0, 0, 1, proto, flows.guest3[i], flows.peer3[i])
    const l4 = at + IPV4
    if (proto === ipv4.ICMP) {
      b[l4] = icmp.ECHO
      b[l4 + 1] = 0
      put16(b, l4 + 2, 0)
    } else {
      put16(b, l4, flows.guestPort[i])
      put16(b, l4 + 2, flows.peerPort[i])
    }
    put32(b, l4 + 4, second)
    this.#send(port, from4, flows.guest3[i], type, code, info, QUOTE_OF_FLOW)
  }

  #send(port: number, from4: number, to: number, type: number, code: number, info: number, quote: number): void {
    const b = this.#b
    const at = this.#slot + ETHERNET + IPV4
    icmp.setType(b, at, type)
    icmp.setCode(b, at, code)
    icmp.setInfo(b, at, info)
    icmp.seal(b, at, icmp.ICMP + quote)
    this.#out.sendSmall(this.#slot, port, from4 === 0 ? this.#gateway : from4, to, ipv4.ICMP, icmp.ICMP + quote)
  }

  #allowed(port: number): boolean {
    const now = this.#host.now()
    const filled = this.#tokens[port] + ((now - this.#filledAt[port]) * this.#perSecond) / 1000
    this.#filledAt[port] = now
    this.#tokens[port] = Math.min(this.#perSecond, filled)
    if (this.#tokens[port] < 1) {
      this.#drops.count(port, DROP['icmp-rate'])
      return false
    }
    this.#tokens[port]--
    return true
  }
}
