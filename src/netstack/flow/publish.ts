/**
 * Published ports: clients of the host's sockets become flows towards a VM.
 *
 * Owns: the published sockets, the flows that clients begin (their tuple, by nat.ts), the budget of each turn. Never does:
 * what happens on a flow afterwards (the relays). A TCP client has a socket of its own; all UDP clients of a port share one, and are
 * told apart by the flow's far address.
 * The VM is found anew for each client, by its address: it may be attached later than the port is published. A client reaches it in its own family
 * where the VM has that and uses it, whichever of its addresses the port was published for. A TCP client that is refused there is led to the other family, under the
 * host's address: `localhost` is ::1 first, and many a server listens on 0.0.0.0 alone; the client cannot try by itself, as the host's kernel has
 * accepted it already.
 *
 * Events are told by edges: a listener whose queue was not emptied, because the host had nothing left to accept with, is watched anew from `tick`. Nobody
 * else would say that clients wait.
 */
import type { Arena } from '../arena.ts'
import { EAGAIN, ECONNABORTED, FAILED, type Host, type Sock } from '../host.ts'
import type { Bindings } from '../switch/bindings.ts'
import type { Ports } from '../switch/ports.ts'
import { DROP } from '../trace/drops.ts'
import { Address, parseIp } from '../wire/address.ts'
import * as ipv6 from '../wire/ipv6.ts'
import type { RelayContext } from './context.ts'
import { type Subnets, setFar, shownPort, showsItself, TRIES } from './nat.ts'
import type { Relay } from './relay.ts'
import { refusal } from './share.ts'
import { IN, TCP, UDP } from './table.ts'
import { findAny, insertAny } from './tuple.ts'

export interface PublishRequest {
  readonly id: string
  readonly proto: 'tcp' | 'udp'
  /** A listening TCP socket, or a bound UDP socket. */
  readonly sock: Sock
  readonly guestAddress: string
  readonly guestPort: number
  readonly hostAddress: string
  readonly hostPort: number
}

interface Published {
  readonly id: string
  readonly proto: number
  readonly sock: Sock
  readonly guest: Address
  readonly guestPort: number
  /** TCP: clients may wait that could not be accepted. */
  waiting: boolean
}

/** What the UDP relay does with a client's datagrams, beyond a relay's contract. */
export interface UdpFlows extends Relay {
  /** Room for a flow of this port? Gives up another one if need be (share.ts). */
  makeRoom(port: number, direction: number): boolean
  /** `len` bytes lie behind the UDP header at egress' l4at: send them to flow `i`'s guest. */
  toGuest(i: number, len: number, segment: number): void
  /** An error about a datagram of the shared socket is of no use: take it off the queue. */
  forgetErrors(sock: Sock): void
}

export interface PublishConfig extends Subnets {
  readonly hostAddress: number
  readonly ipv6?: { readonly p0: number; readonly p1: number; readonly hostAddress: Address }
  readonly isolated: boolean
  /** Which IPv6 addresses are in use. */
  readonly bindings?: Bindings
}

export class Publishes {
  readonly #host: Host
  readonly #arena: Arena
  readonly #x: RelayContext
  readonly #ports: Ports
  readonly #tcp: Relay
  readonly #udp: UdpFlows
  readonly #config: PublishConfig
  readonly #ref: (index: number) => number
  readonly #published: (Published | null)[] = []
  readonly #client: number
  /** The client, as the host says it, and its port. */
  readonly #from = new Address()
  #fromPort = 0
  /** The VM's address that the client is led to, and the host's of that family. */
  readonly #guest = new Address()
  readonly #hosts = new Address()
  // What #find found out about the client: how to show it (port −1: no way), and which flow of an earlier connection is in the way.
  readonly #shown = new Address()
  #shownPort = 0
  #stale = -1

  constructor(
    x: RelayContext,
    ports: Ports,
    tcp: Relay,
    udp: UdpFlows,
    config: PublishConfig,
    ref: (index: number) => number,
  ) {
    this.#host = x.host
    this.#arena = x.arena
    this.#x = x
    this.#ports = ports
    this.#tcp = tcp
    this.#udp = udp
    this.#config = config
    this.#ref = ref
    this.#client = x.arena.alloc(16)
  }

  /** A second publish of an id replaces the first. */
  add(p: PublishRequest): void {
    this.remove(p.id)
    let index = this.#published.indexOf(null)
    if (index < 0) index = this.#published.length
    this.#published[index] = {
      id: p.id,
      proto: p.proto === 'tcp' ? TCP : UDP,
      sock: p.sock,
      guest: parseIp(p.guestAddress),
      guestPort: p.guestPort,
      waiting: false,
    }
    this.#host.watch(p.sock, this.#ref(index))
  }

  /** Close the socket. UDP flows end with it; TCP connections have their own sockets and go on. */
  remove(id: string): void {
    const index = this.#published.findIndex((p) => p?.id === id)
    if (index < 0) return
    const p = this.#published[index] as Published
    this.#published[index] = null
    const { flows } = this.#x
    for (let i = 0; i < flows.capacity; i++)
      if (flows.inUse(i) && flows.publish[i] === index) {
        if (p.proto === UDP) this.#udp.abort(i)
        else flows.publish[i] = -1
      }
    this.#host.close(p.sock)
  }

  ready(index: number, events: number): boolean {
    const p = this.#published[index]
    if (p === null || p === undefined) return false
    if (p.proto === UDP && (events & FAILED) !== 0) this.#udp.forgetErrors(p.sock)
    return p.proto === TCP ? this.#accept(p, index) : this.#receive(p, index)
  }

  /** Every second: who could not be accepted is looked for again. */
  tick(): void {
    for (let index = 0; index < this.#published.length; index++) {
      const p = this.#published[index]
      if (p === null || !p.waiting) continue
      p.waiting = false
      this.#host.watch(p.sock, this.#ref(index))
    }
  }

  // -- TCP ----------------------------------------------------------------------------------------------------------

  #accept(p: Published, index: number): boolean {
    const { host, flows, limits } = this.#x
    for (let n = 0; n < limits.acceptsPerTurn; n++) {
      const sock = host.tcpAccept(p.sock, this.#client)
      if (sock === -EAGAIN) return false
      if (sock < 0) {
        this.#x.drops.count(this.#ports.withAddress(p.guest), DROP['host-socket'])
        if (sock === -ECONNABORTED) continue
        p.waiting = true
        return false
      }
      const port = this.#guestOf(p)
      const i = port < 0 ? -1 : this.#admit(p, index, port)
      if (i < 0) {
        host.tcpReset(sock)
        continue
      }
      flows.sock[i] = sock
      host.watch(sock, this.#x.ref(i))
      this.#tcp.accept(i)
    }
    return true
  }

  /** A flow for the client at #client, or −1 (counted). */
  #admit(p: Published, index: number, port: number): number {
    this.#find(p, index, port)
    if (this.#stale >= 0) this.#tcp.abort(this.#stale)
    const why = refusal(this.#x, port)
    if (why === 0) return this.#insert(p, index, port, TCP)
    this.#x.drops.count(port, why)
    return -1
  }

  /**
   * The VM refused the client of flow `i`: in the other family there may be a server. True: the client's socket belongs to a flow of that family
   * now, and flow `i` has none.
   */
  turn(i: number): boolean {
    const { host, flows } = this.#x
    const index = flows.publish[i]
    const p = index >= 0 ? this.#published[index] : null
    if (p === null || p === undefined) return false
    const from = this.#from.set(flows.far0[i], flows.far1[i], flows.far2[i], flows.far3[i])
    from.write(this.#arena.bytes, this.#client)
    this.#fromPort = flows.farPort[i]
    const port = flows.port[i]
    const { family } = this.#guest.set(flows.guest0[i], flows.guest1[i], flows.guest2[i], flows.guest3[i])
    // It was led to the other one to begin with, or has been since.
    if (family !== from.family || !this.#lead(port, other(family))) return false
    this.#find(p, index, port)
    const j = this.#insert(p, index, port, TCP)
    if (j < 0) return false
    flows.sock[j] = flows.sock[i]
    flows.sock[i] = -1
    host.watch(flows.sock[j], this.#x.ref(j))
    this.#tcp.accept(j)
    return true
  }

  // -- UDP ----------------------------------------------------------------------------------------------------------

  #receive(p: Published, index: number): boolean {
    const { host, egress, limits } = this.#x
    const at = egress.l4at + 8
    for (let n = 0; n < limits.datagramsPerTurn; n++) {
      const len = host.udpRecvFrom(p.sock, at, egress.l4max - 8, this.#client)
      if (len < 0) return false
      const segment = host.segment
      const port = this.#guestOf(p)
      if (port < 0) continue
      const known = this.#find(p, index, port)
      const i = known >= 0 ? known : this.#begin(p, index, port)
      if (i >= 0) this.#udp.toGuest(i, len, segment)
    }
    return true
  }

  #begin(p: Published, index: number, port: number): number {
    if (!this.#udp.makeRoom(port, IN)) return -1
    const i = this.#insert(p, index, port, UDP)
    if (i >= 0) this.#udp.accept(i)
    return i
  }

  // -- both ---------------------------------------------------------------------------------------------------------

  /** The VM of the client at #client, with #from and what #lead fills; −1: none. */
  #guestOf(p: Published): number {
    const port = this.#ports.withAddress(p.guest)
    const from = this.#from.read(this.#arena.bytes, this.#client)
    this.#fromPort = this.#host.peerPort
    if (port >= 0 && !this.#config.isolated) {
      const { family } = from
      if (this.#lead(port, family) || this.#lead(port, other(family)) || this.#lead6(port, true)) return port
    }
    this.#x.drops.count(-1, DROP['publish-no-guest'])
    return -1
  }

  /** Fill #guest and #hosts in a family; false when the VM or the network does not have it, or the VM does not use it. */
  #lead(port: number, family: 4 | 6): boolean {
    if (family === 6) return this.#lead6(port, false)
    const four = this.#ports.address[port]
    this.#guest.set4(four)
    this.#hosts.set4(this.#config.hostAddress)
    return four !== 0
  }

  /**
   * To the VM's reserved address, or to what its kernel makes of the prefix, whichever it uses: what is sent to another is dropped by it in silence.
   * @param unheard to the reserved one, though nothing was heard of it: there is nothing else
   */
  #lead6(port: number, unheard: boolean): boolean {
    const { ipv6: six } = this.#config
    const guest = this.#ports.read6(port, this.#guest)
    if (six === undefined || (guest.w0 | guest.w1) === 0) return false
    const { hostAddress: h } = six
    this.#hosts.set(h.w0, h.w1, h.w2, h.w3)
    if (unheard || this.#speaks(guest)) return true
    const { macHi, macLo } = this.#ports
    guest.set(six.p0, six.p1, ipv6.eui64Upper(macHi[port], macLo[port]), ipv6.eui64Lower(macLo[port]))
    return this.#speaks(guest)
  }

  #speaks(a: Address): boolean {
    return this.#config.bindings?.speaks(a.w0, a.w1, a.w2, a.w3) === true
  }

  /**
   * The UDP flow of the client at #client, or −1. A client that could show itself but whose tuple is taken (it uses one port of its
   * own for two published ones) is shown as the host too.
   */
  #find(p: Published, index: number, port: number): number {
    const { flows } = this.#x
    const b = this.#arena.bytes
    const clientPort = this.#fromPort
    this.#stale = -1
    const from = this.#from
    if (from.family === this.#guest.family && showsItself(from, this.#config)) {
      this.#shown.set(from.w0, from.w1, from.w2, from.w3)
      this.#shownPort = clientPort
      const i = findAny(flows, port, p.proto, this.#guest, p.guestPort, this.#shown, clientPort)
      if (i < 0) return -1
      if (flows.publish[i] === index) {
        if (p.proto === UDP) return i
        // The kernel took a new connection of the same client and port: the old one is dead.
        this.#stale = i
        return -1
      }
    }
    const h = this.#hosts
    this.#shown.set(h.w0, h.w1, h.w2, h.w3)
    this.#shownPort = -1
    for (let n = 0; n < TRIES; n++) {
      const candidate = shownPort(b, this.#client, clientPort, p.guestPort, n)
      const i = findAny(flows, port, p.proto, this.#guest, p.guestPort, h, candidate)
      if (i < 0) {
        if (this.#shownPort < 0) this.#shownPort = candidate
      } else if (p.proto === UDP && flows.publish[i] === index && this.#isFar(i, clientPort)) return i
    }
    return -1
  }

  #isFar(i: number, clientPort: number): boolean {
    const { flows } = this.#x
    const { w0, w1, w2, w3 } = this.#from
    return (
      flows.farPort[i] === clientPort &&
      flows.far3[i] === w3 &&
      flows.far2[i] === w2 &&
      flows.far1[i] === w1 &&
      flows.far0[i] === w0
    )
  }

  /** A flow for the client that #find looked for, or −1 (counted). */
  #insert(p: Published, index: number, port: number, proto: number): number {
    const { flows, host, drops } = this.#x
    if (this.#shownPort < 0) {
      drops.count(port, DROP['publish-ports'])
      return -1
    }
    const i = insertAny(flows, port, proto, this.#guest, p.guestPort, this.#shown, this.#shownPort, IN, host.now())
    if (i < 0) {
      drops.count(port, DROP['flow-table-full'])
      return -1
    }
    const { w0, w1, w2, w3 } = this.#from
    setFar(flows, i, w0, w1, w2, w3)
    flows.farPort[i] = this.#fromPort
    flows.publish[i] = index
    flows.sock[i] = proto === UDP ? p.sock : -1
    return i
  }
}

const other = (family: 4 | 6): 4 | 6 => (family === 4 ? 6 : 4)
