/**
 * ICMP errors of the gateway to its guests, of both families (RFC 792, RFC 4443; what may be said when: RFC 1812 §4.3.2 and §4.3.3, RFC 4443 §2.4).
 *
 * Owns: building them, the rate of each port, the rules about which packets never get one. A guest is told about its own
 * packet as it sent it: NAT is invisible in what is quoted.
 * Works in a slot of its own, so that a relay may call it with a half-made packet in the transmit slot.
 */
import { type Arena, SLOT_FRAME } from '../arena.ts'
import type { FlowTable } from '../flow/table.ts'
import { isMapped } from '../flow/tuple.ts'
import type { Frame } from '../frame.ts'
import type { Host } from '../host.ts'
import { DROP, type Drops } from '../trace/drops.ts'
import type { Address } from '../wire/address.ts'
import { be32, put16, put32 } from '../wire/bytes.ts'
import { ETHERNET } from '../wire/ethernet.ts'
import * as icmp from '../wire/icmp.ts'
import * as icmpv6 from '../wire/icmpv6.ts'
import * as ipv4 from '../wire/ipv4.ts'
import { IPV4 } from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import { IPV6 } from '../wire/ipv6.ts'
import { REDIRECT } from '../wire/ndp.ts'
import type { Out } from './out.ts'
import { codeOf, FROM_GATEWAY, FROM_PEER, SAY, type Say, typeOf } from './say.ts'

/** An error is at most 576 bytes long with everything (RFC 1812 §4.3.2.3); in IPv6 as long as every link carries (RFC 4443 §2.4 c). */
const QUOTE_MAX = 576 - IPV4 - icmp.ICMP
const QUOTE6_MAX = ipv6.MTU_MIN - IPV6 - icmp.ICMP
/** Of a flow whose packet is gone: its IP header and 8 bytes. */
const QUOTED_L4 = 8

export class IcmpErrors {
  readonly #host: Host
  readonly #b: Uint8Array
  readonly #out: Out
  readonly #flows: FlowTable
  readonly #drops: Drops
  readonly #gateway: number
  readonly #gateway6: Address
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
    gateway6: Address,
    subnetBroadcast: number,
    perSecond: number,
  ) {
    this.#host = host
    this.#b = arena.bytes
    this.#out = out
    this.#flows = flows
    this.#drops = drops
    this.#gateway = gateway
    this.#gateway6 = gateway6
    this.#subnetBroadcast = subnetBroadcast
    this.#slot = arena.alloc(SLOT_FRAME + ETHERNET + ipv6.MTU_MIN) + SLOT_FRAME
    this.#perSecond = perSecond
    this.#tokens = new Float64Array(ports).fill(perSecond)
    this.#filledAt = new Float64Array(ports)
  }

  /** @param from who reports it (say.ts) */
  about(f: Frame, say: Say, info: number, from: number): void {
    if (f.family === 4) this.#about4(f, say, info, from)
    else if (f.family === 6) this.#about6(f, say, info, from)
  }

  #about4(f: Frame, say: Say, info: number, from: number): void {
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
    this.#send4(f.port, this.#from4(from, dst), src, typeOf(say, 4), codeOf(say, 4), info, quote)
  }

  #about6(f: Frame, say: Say, info: number, from: number): void {
    const b = this.#b
    const { l3 } = f
    const s0 = ipv6.src(b, l3, 0)
    if (ipv6.isMulticast(s0) || ipv6.isUnspecified(s0, ipv6.src(b, l3, 1), ipv6.src(b, l3, 2), ipv6.src(b, l3, 3)))
      return
    if (ipv6.isMulticast(ipv6.dst(b, l3, 0))) return
    if (f.fragment === 1 && ipv6.fragmentOffset(b, f.fragmentAt) !== 0) return
    if (f.proto === ipv6.ICMPV6 && f.l4len >= icmp.ICMP) {
      const type = icmp.type(b, f.l4)
      if (icmpv6.isError(type) || type === REDIRECT) return
    }
    if (!this.#allowed(f.port)) return
    const quote = Math.min(QUOTE6_MAX, f.l4 - l3 + f.l4len)
    const to = this.#slot + ETHERNET
    b.copyWithin(to + IPV6 + icmp.ICMP, l3, l3 + quote)
    b.copyWithin(to + ipv6.DST, l3 + ipv6.SRC, l3 + ipv6.DST)
    this.#from6(from, b, l3 + ipv6.DST)
    const pointer = say === SAY.protocol ? lastNextHeader(b, f) : info
    this.#send6(f.port, typeOf(say, 6), codeOf(say, 6), pointer, quote)
  }

  /** @param type, code of the flow's own family */
  aboutFlow(i: number, type: number, code: number, info: number, from: number, second: number): void {
    const flows = this.#flows
    const port = flows.port[i]
    if (!this.#allowed(port)) return
    if (flows.family[i] === 4) this.#aboutFlow4(i, type, code, info, from, second)
    else this.#aboutFlow6(i, type, code, info, from, second)
  }

  #aboutFlow4(i: number, type: number, code: number, info: number, from: number, second: number): void {
    const flows = this.#flows
    const b = this.#b
    const proto = flows.proto[i]
    const at = this.#slot + ETHERNET + IPV4 + icmp.ICMP
    ipv4.write(b, at, IPV4 + QUOTED_L4, 0, 0, 1, proto, flows.guest3[i], flows.peer3[i])
    this.#quoteL4(i, at + IPV4, icmp.ECHO, second)
    const who = this.#from4(from, flows.peer3[i])
    this.#send4(flows.port[i], who, flows.guest3[i], type, code, info, IPV4 + QUOTED_L4)
  }

  #aboutFlow6(i: number, type: number, code: number, info: number, from: number, second: number): void {
    const flows = this.#flows
    const b = this.#b
    const l3 = this.#slot + ETHERNET
    const at = l3 + IPV6 + icmp.ICMP
    const proto = flows.proto[i] === ipv4.ICMP ? ipv6.ICMPV6 : flows.proto[i]
    ipv6.write(b, at, QUOTED_L4, proto, 1)
    ipv6.setSrc(b, at, flows.guest0[i], flows.guest1[i], flows.guest2[i], flows.guest3[i])
    ipv6.setDst(b, at, flows.peer0[i], flows.peer1[i], flows.peer2[i], flows.peer3[i])
    this.#quoteL4(i, at + IPV6, icmpv6.ECHO, second)
    ipv6.setDst(b, l3, flows.guest0[i], flows.guest1[i], flows.guest2[i], flows.guest3[i])
    this.#from6(from, b, at + ipv6.DST)
    this.#send6(flows.port[i], type, code, info, IPV6 + QUOTED_L4)
  }

  #quoteL4(i: number, l4: number, echo: number, second: number): void {
    const flows = this.#flows
    const b = this.#b
    if (flows.proto[i] === ipv4.ICMP) {
      b[l4] = echo
      b[l4 + 1] = 0
      put16(b, l4 + 2, 0)
    } else {
      put16(b, l4, flows.guestPort[i])
      put16(b, l4 + 2, flows.peerPort[i])
    }
    put32(b, l4 + 4, second)
  }

  #from4(from: number, peer: number): number {
    if (from === FROM_PEER) return peer
    return from === FROM_GATEWAY || !isMapped(this.#b, from) ? this.#gateway : be32(this.#b, from + 12)
  }

  /** Write the reporter's address into the error's header; `peer`: where the destination's lies. */
  #from6(from: number, b: Uint8Array, peer: number): void {
    const at = this.#slot + ETHERNET + ipv6.SRC
    const source = from === FROM_PEER ? peer : from
    // What is link-local on the host's side means nothing on this one.
    if (source === FROM_GATEWAY || isMapped(b, source) || ipv6.isLinkLocal(be32(b, source))) this.#gateway6.write(b, at)
    else b.copyWithin(at, source, source + 16)
  }

  #send4(port: number, from: number, to: number, type: number, code: number, info: number, quote: number): void {
    const b = this.#b
    const at = this.#slot + ETHERNET + IPV4
    icmp.setType(b, at, type)
    icmp.setCode(b, at, code)
    icmp.setInfo(b, at, info)
    icmp.seal(b, at, icmp.ICMP + quote)
    this.#out.sendSmall(this.#slot, port, from, to, ipv4.ICMP, icmp.ICMP + quote)
  }

  #send6(port: number, type: number, code: number, info: number, quote: number): void {
    const b = this.#b
    const at = this.#slot + ETHERNET + IPV6
    icmp.setType(b, at, type)
    icmp.setCode(b, at, code)
    icmp.setInfo(b, at, info)
    icmpv6.seal(b, this.#slot + ETHERNET, at, icmp.ICMP + quote)
    this.#out.sendSmall6(this.#slot, port, ipv6.ICMPV6, icmp.ICMP + quote)
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

/** Where in the packet its upper layer's protocol is named (RFC 4443 §3.4). */
function lastNextHeader(b: Uint8Array, f: Frame): number {
  let field = f.l3 + 6
  let at = f.l3 + IPV6
  while (at < f.l4) {
    const size = b[field] === ipv6.FRAGMENT ? ipv6.FRAGMENT_HEADER : (b[at + 1] + 1) << 3
    field = at
    at += size
  }
  return field - f.l3
}
