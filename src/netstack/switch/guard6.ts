/**
 * The guard for IPv6: a port speaks for itself only, in packets and in neighbour discovery (RFC 4861; RFC 6105's and RFC 7113's concerns).
 *
 *  - a source address is the port's own (bindings.ts): of the network's /64 or link-local; another's, the gateway's, or one of elsewhere is refused;
 *  - from :: (nobody yet) come duplicate address detection, router solicitations and reports of multicast listeners, and nothing else;
 *  - solicitations and advertisements name the sender's own address and MAC, come whole (RFC 6980) and from the link (hop limit 255);
 *  - a VM is no router: advertisements and redirects are refused; it gives no DHCPv6 answers;
 *  - who asks whether an address is free that another has is told so by the gateway, and the owner does not hear it: to one that is about to use its
 *    own address, the same question from somebody else would mean that it must not (RFC 4862 §5.4.3), and anybody could keep it from having any.
 * The host's port speaks from the host's address and from link-local ones, and learns no others.
 *
 * Never does: forwarding, answering. Its caller has seen that the source MAC is the port's.
 */
import type { Frame } from '../frame.ts'
import { DROP, type Drop } from '../trace/drops.ts'
import { be32 } from '../wire/bytes.ts'
import * as ethernet from '../wire/ethernet.ts'
import * as icmp from '../wire/icmp.ts'
import * as icmpv6 from '../wire/icmpv6.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as ndp from '../wire/ndp.ts'
import { type Bindings, GATEWAY } from './bindings.ts'
import { ROLE } from './port.ts'
import type { Ports } from './ports.ts'

export const DHCP6_CLIENT = 546
export const DHCP6_SERVER = 547

export class Guard6 {
  readonly #b: Uint8Array
  readonly #ports: Ports
  readonly #bindings: Bindings
  readonly #p0: number
  readonly #p1: number
  /** Somebody asks for another's address. */
  onTaken: ((f: Frame) => void) | undefined

  /** @param p0, p1 the network's /64 */
  constructor(b: Uint8Array, ports: Ports, bindings: Bindings, p0: number, p1: number) {
    this.#b = b
    this.#ports = ports
    this.#bindings = bindings
    this.#p0 = p0
    this.#p1 = p1
  }

  /** May the port say this? 0, or the reason why not. */
  check(f: Frame, now: number): Drop {
    const b = this.#b
    const from = f.l3 + ipv6.SRC
    const w0 = be32(b, from)
    const w1 = be32(b, from + 4)
    const w2 = be32(b, from + 8)
    const w3 = be32(b, from + 12)
    const nobody = ipv6.isUnspecified(w0, w1, w2, w3)
    if (!nobody) {
      const bad = this.#own(f, w0, w1, w2, w3, now)
      if (bad !== 0) return bad
    }
    if (f.proto === ipv4.UDP) {
      if (nobody) return DROP['guard-address']
      return f.dstPort === DHCP6_CLIENT ? DROP['guard-dhcp-server'] : 0
    }
    if (f.proto !== ipv6.ICMPV6) return nobody ? DROP['guard-address'] : 0
    // The type of a later fragment was seen in the first one.
    if (f.fragment === 1 && ipv6.fragmentOffset(b, f.fragmentAt) !== 0) return nobody ? DROP['guard-address'] : 0
    const type = icmp.type(b, f.l4)
    switch (type) {
      case ndp.ROUTER_ADVERTISEMENT:
      case icmpv6.ROUTER_RENUMBERING:
      case icmpv6.MULTICAST_ROUTER_ADVERTISEMENT:
        return DROP['guard-ra']
      case ndp.REDIRECT:
        return DROP['guard-redirect']
      case ndp.ROUTER_SOLICITATION:
      case ndp.NEIGHBOUR_SOLICITATION:
      case ndp.NEIGHBOUR_ADVERTISEMENT:
        return this.#discovery(f, type, nobody, now)
      case icmpv6.MLD_REPORT:
      case icmpv6.MLD_DONE:
      case icmpv6.MLD2_REPORT:
        return 0
      default:
        return nobody ? DROP['guard-address'] : 0
    }
  }

  #discovery(f: Frame, type: number, nobody: boolean, now: number): Drop {
    const b = this.#b
    const { l4, l4len } = f
    if (f.fragment === 1 || !ndp.valid(b, f.l3, l4, l4len)) return DROP['nd-malformed']
    const hi = ethernet.srcHi(b, f.off)
    const lo = ethernet.srcLo(b, f.off)
    if (!ndp.tellsOnly(b, l4, l4len, hi, lo)) return DROP['guard-nd']
    if (nobody && type !== ndp.ROUTER_SOLICITATION && type !== ndp.NEIGHBOUR_SOLICITATION) return DROP['guard-nd']
    if (nobody && (ndp.hasSource(b, l4, l4len) || !ipv6.isMulticast(ipv6.dst(b, f.l3, 0)))) return DROP['nd-malformed']
    if (type === ndp.ROUTER_SOLICITATION) return 0
    const solicits = type === ndp.NEIGHBOUR_SOLICITATION
    if (solicits && !nobody) return 0
    const t0 = ndp.target(b, l4, 0)
    const t1 = ndp.target(b, l4, 1)
    const t2 = ndp.target(b, l4, 2)
    const t3 = ndp.target(b, l4, 3)
    const entry = this.#bindings.find(t0, t1, t2, t3)
    if (entry >= 0) {
      const owner = this.#bindings.portOf(entry)
      if (owner === f.port) {
        // It is about to use it, or does.
        this.#bindings.heard(entry, hi, lo, now)
        return 0
      }
      if (!solicits) return DROP['guard-nd']
      // The gateway answers for its own addresses by itself.
      if (owner === GATEWAY || this.onTaken === undefined) return 0
      this.onTaken(f)
      return DROP['address-taken']
    }
    const bad = this.#claim(f, t0, t1, t2, t3, now)
    return bad === DROP['guard-address'] ? DROP['guard-nd'] : bad
  }

  /** Is the address the port's, or nobody's yet? */
  #own(f: Frame, w0: number, w1: number, w2: number, w3: number, now: number): Drop {
    const bindings = this.#bindings
    const entry = bindings.find(w0, w1, w2, w3)
    if (entry < 0) return this.#claim(f, w0, w1, w2, w3, now)
    if (bindings.portOf(entry) !== f.port) return DROP['guard-address']
    const b = this.#b
    bindings.heard(entry, ethernet.srcHi(b, f.off), ethernet.srcLo(b, f.off), now)
    return 0
  }

  #claim(f: Frame, w0: number, w1: number, w2: number, w3: number, now: number): Drop {
    const b = this.#b
    const onLink = w0 === ipv6.LINK_LOCAL_W0 && w1 === 0
    const ours = w0 === this.#p0 && w1 === this.#p1 && this.#ports.role[f.port] === ROLE.vm
    // The prefix alone is the routers' anycast address (RFC 4291 §2.6.1).
    if ((!onLink && !ours) || (w2 | w3) === 0) return DROP['guard-address']
    const hi = ethernet.srcHi(b, f.off)
    const lo = ethernet.srcLo(b, f.off)
    return this.#bindings.claim(w0, w1, w2, w3, f.port, hi, lo, now) ? 0 : DROP['guard-address-limit']
  }

  /** A port's assigned addresses become its own: the reserved one, and those that its MAC makes. The host has its own way to link-local ones. */
  assign(port: number, now: number): void {
    const { macHi, macLo, role, address6 } = this.#ports
    const hi = macHi[port]
    const lo = macLo[port]
    const at = port << 2
    const bindings = this.#bindings
    if ((address6[at] | address6[at + 1] | address6[at + 2] | address6[at + 3]) !== 0)
      bindings.assign(address6[at], address6[at + 1], address6[at + 2], address6[at + 3], port, hi, lo, now)
    const e2 = ipv6.eui64Upper(hi, lo)
    const e3 = ipv6.eui64Lower(lo)
    bindings.assign(ipv6.LINK_LOCAL_W0, 0, e2, e3, port, hi, lo, now)
    if (role[port] === ROLE.vm) bindings.assign(this.#p0, this.#p1, e2, e3, port, hi, lo, now)
  }

  /** An address of the gateway's own. */
  reserve(w0: number, w1: number, w2: number, w3: number, hi: number, lo: number): void {
    this.#bindings.assign(w0, w1, w2, w3, GATEWAY, hi, lo, 0)
  }

  release(port: number): void {
    this.#bindings.clear(port)
  }
}
