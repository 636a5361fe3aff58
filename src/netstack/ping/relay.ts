/**
 * The ping relay: a guest's echo requests leave by an ICMP socket of the host, and the answers come back under the guest's id.
 *
 * A flow is (guest, its echo id, destination). Owns: its socket, the id's translation (the kernel puts in its own), idle time,
 * errors (time exceeded, unreachable) with the address of the router that said them, so that ICMP traceroute works.
 * Never does: any other ICMP message. Idle time: 60 s (RFC 5508 REQ-2's minimum).
 */
import type { RelayContext } from '../flow/context.ts'
import { Hops } from '../flow/hops.ts'
import type { Relay } from '../flow/relay.ts'
import { Share } from '../flow/share.ts'
import { ICMP } from '../flow/table.ts'
import { isMapped } from '../flow/tuple.ts'
import type { Frame } from '../frame.ts'
import { FROM_GATEWAY, SAY, type Say } from '../gateway/say.ts'
import { EACCES, EAGAIN, EHOSTUNREACH, EMSGSIZE, ENETUNREACH, FAILED, HANGUP } from '../host.ts'
import { WAY } from '../switch/port.ts'
import { DROP } from '../trace/drops.ts'
import { be32 } from '../wire/bytes.ts'
import * as icmp from '../wire/icmp.ts'
import * as icmpv6 from '../wire/icmpv6.ts'
import * as ipv4 from '../wire/ipv4.ts'

export const IDLE = 60_000

const EPERM = 1
const ERRORS_PER_TURN = 4

export class PingRelay implements Relay {
  readonly #x: RelayContext
  readonly #b: Uint8Array
  readonly #hops: Hops
  readonly #share: Share
  readonly #answered: Uint8Array
  /** Sequence number of the request that was sent last. */
  readonly #sequence: Uint16Array
  readonly #offender: number
  #warned = false

  constructor(x: RelayContext) {
    this.#x = x
    this.#b = x.arena.bytes
    this.#hops = new Hops(x)
    this.#answered = new Uint8Array(x.flows.capacity)
    this.#share = new Share(x, ICMP, x.limits.pingFlowsPerVm, DROP['ping-evicted'], this.#answered)
    this.#sequence = new Uint16Array(x.flows.capacity)
    this.#offender = x.arena.alloc(16)
  }

  makeRoom(port: number, direction: number): boolean {
    return this.#share.makeRoom(port, direction, this)
  }

  open(i: number, f: Frame): void {
    const { flows, host, timers, drops, egress } = this.#x
    this.#hops.begin(i)
    this.#answered[i] = 0
    this.#share.begun(i)
    const sock = host.pingOpen(this.#x.far(i))
    if (sock < 0) {
      const forbidden = sock === -EACCES || sock === -EPERM
      drops.count(f.port, DROP[forbidden ? 'ping-forbidden' : 'host-socket'])
      if (forbidden) this.#warn()
      egress.icmpError(f, forbidden ? SAY.prohibited : this.#sayOf(-sock), 0, FROM_GATEWAY)
      return this.#remove(i)
    }
    flows.sock[i] = sock
    timers.set(i, host.now() + IDLE)
    host.watch(sock, this.#x.ref(i))
    this.receive(i, f)
  }

  #warn(): void {
    if (this.#warned) return
    this.#warned = true
    this.#x.host.notify({
      type: 'warning',
      message:
        'VMs cannot ping the outside: this user may not open ICMP sockets (sysctl net.ipv4.ping_group_range opens them)',
    })
  }

  /** A ping is begun by a guest only. */
  accept(i: number): void {
    this.#x.flows.remove(i)
  }

  receive(i: number, f: Frame): void {
    const { flows, host, drops, egress } = this.#x
    const b = this.#b
    const sound = f.family === 4 ? icmp.sound(b, f.l4, f.l4len) : icmpv6.sound(b, f.l3, f.l4, f.l4len)
    if (!sound) return drops.count(f.port, DROP.checksum)
    flows.touch(i, host.now())
    flows.bytesOut[i] += f.l4len
    const sock = flows.sock[i]
    this.#hops.follow(i, sock, f)
    this.#sequence[i] = icmp.sequence(b, f.l4)
    let r = host.pingSend(sock, f.l4, f.l4len)
    if (r < 0 && r !== -EAGAIN && r !== -EMSGSIZE) {
      // An earlier request's error may have taken this call's place.
      this.#reportErrors(i)
      r = host.pingSend(sock, f.l4, f.l4len)
    }
    if (r >= 0) return
    drops.count(f.port, DROP[r === -EMSGSIZE ? 'too-big' : 'host-send'])
    if (r !== -EAGAIN && this.#reportErrors(i) === 0)
      egress.icmpErrorOfFlow(i, this.#sayOf(-r), 0, FROM_GATEWAY, this.#second(i, this.#sequence[i]))
  }

  #sayOf(errno: number): Say {
    if (errno === ENETUNREACH) return SAY.net
    if (errno === EMSGSIZE) return SAY.tooBig
    return errno === EACCES || errno === EPERM ? SAY.prohibited : SAY.host
  }

  /** The second word of a quoted echo request. */
  #second(i: number, sequence: number): number {
    return (this.#x.flows.guestPort[i] << 16) | sequence
  }

  ready(i: number, events: number): boolean {
    const { flows, host, egress, limits } = this.#x
    const b = this.#b
    if ((events & (FAILED | HANGUP)) !== 0) this.#reportErrors(i)
    const at = egress.l4at
    const reply = flows.family[i] === 4 ? icmp.ECHO_REPLY : icmpv6.ECHO_REPLY
    let errors = 0
    for (let n = 0; n < limits.datagramsPerTurn; n++) {
      const len = host.pingRecv(flows.sock[i], at, egress.l4max)
      if (len < 0) {
        if (len === -EAGAIN || ++errors > ERRORS_PER_TURN) return false
        this.#reportErrors(i)
        continue
      }
      if (len < icmp.ICMP || icmp.type(b, at) !== reply) continue
      icmp.setId(b, at, flows.guestPort[i])
      this.#answered[i] = 1
      flows.touch(i, host.now())
      flows.bytesIn[i] += len
      egress.flow(i, len, icmp.CHECKSUM, 0, 0, icmp.ICMP, WAY.now)
    }
    return true
  }

  #reportErrors(i: number): number {
    const { flows, host, egress, limits } = this.#x
    const b = this.#b
    let n = 0
    while (n < limits.datagramsPerTurn && host.recvError(flows.sock[i], this.#offender) > 0) {
      n++
      const { type, code, errno, mtu, sequence } = host.icmp
      const second = this.#second(i, sequence >= 0 ? sequence : this.#sequence[i])
      if (type === 0 && code === 0) {
        if (errno === EHOSTUNREACH || errno === ENETUNREACH || errno === EACCES || errno === EMSGSIZE)
          egress.icmpErrorOfFlow(i, this.#sayOf(errno), errno === EMSGSIZE ? mtu : 0, FROM_GATEWAY, second)
        continue
      }
      const hidden = isMapped(b, this.#offender) && ipv4.isLoopback(be32(b, this.#offender + 12))
      const from = hidden ? FROM_GATEWAY : this.#offender
      egress.icmpErrorPassed(i, type, code, errno === EMSGSIZE ? mtu : 0, from, second)
    }
    if (n === 0) host.error(flows.sock[i])
    return n
  }

  expire(i: number): void {
    const { flows, timers, host } = this.#x
    const due = flows.usedAt[i] + IDLE
    if (due > host.now()) timers.set(i, due)
    else this.#remove(i)
  }

  abort(i: number): void {
    this.#remove(i)
  }

  #remove(i: number): void {
    const { flows, timers, host } = this.#x
    if (flows.sock[i] >= 0) host.close(flows.sock[i])
    timers.clear(i)
    this.#share.ended(i)
    flows.remove(i)
  }

  stateName(i: number): string {
    return this.#answered[i] === 1 ? 'answered' : 'waiting'
  }
}
