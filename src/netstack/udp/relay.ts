/**
 * The UDP relay: a flow for each full tuple, each on a connected socket of the host; flows of a published port share its socket.
 *
 * Owns: those sockets, idle times, ICMP errors to the guest, the TTL that a guest's datagram carries on. Never does: storing a
 * payload; a datagram goes from the frame to the socket, and from the socket behind the headers of the next frame.
 *
 * Mapping and filtering (RFC 4787 §4, §5): a connected socket for each tuple means address and port dependent mapping, which is
 * what a full tuple in the flow table says. Idle times (§4.3, REQ-5): two minutes at least, five recommended, less allowed for
 * well-known ports. So a flow that was answered lives five minutes; one that never was, two minutes (half a minute to a
 * well-known port); DNS, one question and one answer, ten seconds. Only the guest's datagrams and real answers keep a flow alive.
 *
 * Several datagrams in one frame (a guest's UDP_SEGMENT, the host's UDP_GRO) stay together in both directions: one call, one
 * frame. Where the host refuses a joined send (path smaller than the segment), its datagrams are sent one by one.
 */
import type { RelayContext } from '../flow/context.ts'
import { Hops } from '../flow/hops.ts'
import type { UdpFlows } from '../flow/publish.ts'
import { Share } from '../flow/share.ts'
import { UDP } from '../flow/table.ts'
import { isMapped } from '../flow/tuple.ts'
import type { Frame } from '../frame.ts'
import { FROM_GATEWAY, FROM_PEER, SAY } from '../gateway/say.ts'
import {
  EACCES,
  EAGAIN,
  ECONNREFUSED,
  EHOSTUNREACH,
  EMSGSIZE,
  ENETUNREACH,
  FAILED,
  HANGUP,
  type Sock,
} from '../host.ts'
import { WAY } from '../switch/port.ts'
import { DROP } from '../trace/drops.ts'
import { be32 } from '../wire/bytes.ts'
import { fold, pseudo, sum } from '../wire/checksum.ts'
import * as ipv4 from '../wire/ipv4.ts'
import * as ipv6 from '../wire/ipv6.ts'
import * as udp from '../wire/udp.ts'
import { GSO_UDP_L4 } from '../wire/vnet.ts'

export const IDLE_ANSWERED = 300_000
export const IDLE_UNANSWERED = 120_000
export const IDLE_WELL_KNOWN = 30_000
export const IDLE_DNS = 10_000

const DNS = 53
const WELL_KNOWN = 1024
const ERRORS_PER_TURN = 4

export class UdpRelay implements UdpFlows {
  readonly #x: RelayContext
  readonly #b: Uint8Array
  readonly #answered: Uint8Array
  readonly #hops: Hops
  readonly #share: Share
  readonly #offender: number
  /** Where joined datagrams are kept while they are sent one by one. */
  readonly #joined: number

  constructor(x: RelayContext) {
    this.#x = x
    this.#b = x.arena.bytes
    this.#answered = new Uint8Array(x.flows.capacity)
    this.#hops = new Hops(x)
    this.#share = new Share(x, UDP, x.limits.udpFlowsPerVm, DROP['udp-evicted'], this.#answered)
    this.#offender = x.arena.alloc(16)
    this.#joined = x.arena.alloc(65536)
  }

  makeRoom(port: number, direction: number): boolean {
    return this.#share.makeRoom(port, direction, this)
  }

  open(i: number, f: Frame): void {
    const { flows, host, drops } = this.#x
    this.#begin(i)
    const sock = host.udpConnect(this.#x.far(i), flows.farPort[i])
    if (sock < 0) {
      drops.count(f.port, DROP['host-socket'])
      this.#tell(i, -sock)
      return this.#remove(i)
    }
    flows.sock[i] = sock
    host.watch(sock, this.#x.ref(i))
    this.receive(i, f)
  }

  accept(i: number): void {
    this.#begin(i)
  }

  #begin(i: number): void {
    const { timers, host } = this.#x
    this.#answered[i] = 0
    this.#hops.begin(i)
    this.#share.begun(i)
    timers.set(i, host.now() + this.#idle(i))
  }

  #idle(i: number): number {
    const { flows } = this.#x
    // A published port's peer is a client; what counts is the service's own port.
    const service = flows.publish[i] >= 0 ? flows.guestPort[i] : flows.peerPort[i]
    if (service === DNS) return IDLE_DNS
    if (this.#answered[i] === 1) return IDLE_ANSWERED
    return service < WELL_KNOWN ? IDLE_WELL_KNOWN : IDLE_UNANSWERED
  }

  // -- from the guest -----------------------------------------------------------------------------------------------

  receive(i: number, f: Frame): void {
    const { flows, host, drops } = this.#x
    if (!this.#sound(f)) return drops.count(f.port, DROP.checksum)
    const payload = f.l4 + udp.UDP
    const len = f.l4len - udp.UDP
    const segment = f.gsoType === GSO_UDP_L4 && f.gsoSize < len ? f.gsoSize : 0
    flows.touch(i, host.now())
    flows.bytesOut[i] += len
    if (flows.publish[i] >= 0) {
      this.#answered[i] = 1
      return this.#toClient(i, payload, len, segment)
    }
    const sock = flows.sock[i]
    this.#hops.follow(i, sock, f)
    let r = host.udpSend(sock, payload, len, segment)
    if (r >= 0) return
    if (r !== -EAGAIN && r !== -EMSGSIZE) {
      // The error may belong to an earlier datagram: the kernel reports it once, instead of sending.
      this.#reportErrors(i)
      r = host.udpSend(sock, payload, len, segment)
      if (r >= 0) return
      if (segment > 0) return this.#oneByOne(i, payload, len, segment)
    }
    drops.count(f.port, DROP[r === -EMSGSIZE ? 'too-big' : 'host-send'])
    if (r !== -EAGAIN && this.#reportErrors(i) === 0) this.#tell(i, -r)
  }

  #toClient(i: number, payload: number, len: number, segment: number): void {
    const { flows, host, drops } = this.#x
    const sock = flows.sock[i]
    let r = host.udpSendTo(sock, this.#x.far(i), flows.farPort[i], payload, len, segment)
    if (r >= 0) return
    if (r !== -EAGAIN) {
      // The error may be about a datagram to another client.
      this.forgetErrors(sock)
      if (segment > 0) return this.#oneByOne(i, payload, len, segment)
      r = host.udpSendTo(sock, this.#x.far(i), flows.farPort[i], payload, len, 0)
      if (r >= 0) return
    }
    drops.count(flows.port[i], DROP['host-send'])
  }

  #sound(f: Frame): boolean {
    if (f.partialChecksum === 1) return true
    const b = this.#b
    if (udp.checksum(b, f.l4) === 0) return true
    return fold(sum(b, f.l4, f.l4len, pseudo(b, f))) === 0xffff
  }

  #oneByOne(i: number, payload: number, len: number, segment: number): void {
    const { flows, host, drops } = this.#x
    const sock = flows.sock[i]
    for (let done = 0; done < len; done += segment) {
      const part = Math.min(segment, len - done)
      const r =
        flows.publish[i] >= 0
          ? host.udpSendTo(sock, this.#x.far(i), flows.farPort[i], payload + done, part, 0)
          : host.udpSend(sock, payload + done, part, 0)
      if (r < 0) return drops.count(flows.port[i], DROP['host-send'])
    }
  }

  // -- to the guest -------------------------------------------------------------------------------------------------

  ready(i: number, events: number): boolean {
    const { flows, host, egress, limits } = this.#x
    const sock = flows.sock[i]
    if ((events & (FAILED | HANGUP)) !== 0) this.#reportErrors(i)
    const at = egress.l4at + udp.UDP
    let errors = 0
    for (let n = 0; n < limits.datagramsPerTurn; n++) {
      const len = host.udpRecv(sock, at, egress.l4max - udp.UDP)
      if (len < 0) {
        // A pending error takes one call's place; one that stays must not keep the turn going.
        if (len === -EAGAIN || ++errors > ERRORS_PER_TURN) return false
        this.#reportErrors(i)
        continue
      }
      this.toGuest(i, len, host.segment)
    }
    return true
  }

  toGuest(i: number, len: number, segment: number): void {
    const { flows, host, mtu } = this.#x
    flows.touch(i, host.now())
    flows.bytesIn[i] += len
    if (flows.publish[i] < 0) this.#answered[i] = 1
    const header = flows.family[i] === 4 ? ipv4.IPV4 : ipv6.IPV6
    if (segment > 0 && len > segment && header + udp.UDP + segment > mtu) return this.#split(i, len, segment)
    this.#send(i, len, segment)
  }

  #send(i: number, len: number, segment: number): void {
    const { flows, egress } = this.#x
    udp.write(this.#b, egress.l4at, flows.peerPort[i], flows.guestPort[i], udp.UDP + len)
    const gso = segment > 0 && len > segment ? GSO_UDP_L4 : 0
    egress.flow(i, udp.UDP + len, udp.CHECKSUM, gso, segment, udp.UDP, WAY.now)
  }

  /** Each datagram is longer than the guest's MTU: they leave one by one, in fragments. */
  #split(i: number, len: number, segment: number): void {
    const b = this.#b
    const at = this.#x.egress.l4at + udp.UDP
    b.copyWithin(this.#joined, at, at + len)
    for (let done = 0; done < len; done += segment) {
      const part = Math.min(segment, len - done)
      b.copyWithin(at, this.#joined + done, this.#joined + done + part)
      this.#send(i, part, 0)
    }
  }

  // -- errors -------------------------------------------------------------------------------------------------------

  /** What the host's error queue holds becomes ICMP to the guest, from the router that said it. How many there were. */
  #reportErrors(i: number): number {
    const { flows, host, egress, limits } = this.#x
    const sock = flows.sock[i]
    if (flows.publish[i] >= 0) return 0
    let n = 0
    while (n < limits.datagramsPerTurn && host.recvError(sock, this.#offender) > 0) {
      n++
      const { type, code, errno, mtu } = host.icmp
      if (type === 0 && code === 0) {
        this.#tell(i, errno)
        continue
      }
      egress.icmpErrorPassed(i, type, code, errno === EMSGSIZE ? mtu : 0, this.#reporter(i))
    }
    if (n === 0) {
      const errno = host.error(sock)
      if (errno !== 0) this.#tell(i, errno)
    }
    return n
  }

  /** Who said what lies at #offender. The destination itself is told under the name that the guest knows it by. */
  #reporter(i: number): number {
    const { flows } = this.#x
    const b = this.#b
    const at = this.#offender
    const w3 = be32(b, at + 12)
    if (w3 === flows.far3[i] && be32(b, at + 8) === flows.far2[i] && be32(b, at + 4) === flows.far1[i]) return FROM_PEER
    return isMapped(b, at) && ipv4.isLoopback(w3) ? FROM_GATEWAY : at
  }

  forgetErrors(sock: Sock): void {
    let n = 0
    while (n++ < this.#x.limits.datagramsPerTurn && this.#x.host.recvError(sock, this.#offender) > 0);
  }

  /** A local error, said in ICMP's words. */
  #tell(i: number, errno: number): void {
    const { egress, host } = this.#x
    switch (errno) {
      case ECONNREFUSED:
        return egress.icmpErrorOfFlow(i, SAY.port, 0, FROM_PEER)
      case EHOSTUNREACH:
        return egress.icmpErrorOfFlow(i, SAY.host, 0, FROM_GATEWAY)
      case ENETUNREACH:
        return egress.icmpErrorOfFlow(i, SAY.net, 0, FROM_GATEWAY)
      case EACCES:
        return egress.icmpErrorOfFlow(i, SAY.prohibited, 0, FROM_GATEWAY)
      case EMSGSIZE:
        return egress.icmpErrorOfFlow(i, SAY.tooBig, host.icmp.mtu || this.#leastMtu(i), FROM_GATEWAY)
    }
  }

  /** What every path carries. */
  #leastMtu(i: number): number {
    return this.#x.flows.family[i] === 4 ? 576 : ipv6.MTU_MIN
  }

  // -- ends ---------------------------------------------------------------------------------------------------------

  expire(i: number): void {
    const { flows, timers, host } = this.#x
    const due = flows.usedAt[i] + this.#idle(i)
    if (due > host.now()) timers.set(i, due)
    else this.#remove(i)
  }

  abort(i: number): void {
    this.#remove(i)
  }

  #remove(i: number): void {
    const { flows, timers, host } = this.#x
    if (flows.sock[i] >= 0 && flows.publish[i] < 0) host.close(flows.sock[i])
    timers.clear(i)
    this.#share.ended(i)
    flows.remove(i)
  }

  stateName(i: number): string {
    return this.#answered[i] === 1 ? 'answered' : 'waiting'
  }
}
