/**
 * Published ports: clients of the host's sockets become flows towards a VM.
 *
 * Owns: the published sockets, the flows that clients begin (their tuple, by nat.ts), the budget of each turn. Never does:
 * what happens on a flow afterwards (the relays). A TCP client has a socket of its own; all UDP clients of a port share one, and are
 * told apart by the flow's far address.
 * The VM is found anew for each client, by its address: it may be attached later than the port is published.
 */
import type { Arena } from '../arena.ts'
import { FAILED, type Host, type Sock } from '../host.ts'
import { ROLE } from '../switch/port.ts'
import type { Ports } from '../switch/ports.ts'
import { DROP } from '../trace/drops.ts'
import { be32 } from '../wire/bytes.ts'
import { parseAddress } from '../wire/ipv4.ts'
import type { RelayContext } from './context.ts'
import { setFar, shownPort, showsItself, TRIES } from './nat.ts'
import type { Relay } from './relay.ts'
import { IN, TCP, UDP } from './table.ts'
import { find4, insert4, mapped } from './tuple.ts'

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
  readonly guest: number
  readonly guestPort: number
}

/** What the UDP relay does with a client's datagrams, beyond a relay's contract. */
export interface UdpFlows extends Relay {
  /** Room for a flow of this port? Gives up the oldest if need be. */
  makeRoom(port: number): boolean
  /** `len` bytes lie behind the UDP header at egress' l4at: send them to flow `i`'s guest. */
  toGuest(i: number, len: number, segment: number): void
  /** An error about a datagram of the shared socket is of no use: take it off the queue. */
  forgetErrors(sock: Sock): void
}

export interface PublishConfig {
  readonly subnet: number
  readonly mask: number
  readonly hostAddress: number
  readonly isolated: boolean
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
  // What #find found out about the client at #client: how to show it (port −1: no way), and which flow of an earlier connection is in the way.
  #shown = 0
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
      guest: parseAddress(p.guestAddress),
      guestPort: p.guestPort,
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

  // -- TCP ----------------------------------------------------------------------------------------------------------

  #accept(p: Published, index: number): boolean {
    const { host, flows, drops, limits } = this.#x
    for (let n = 0; n < limits.acceptsPerTurn; n++) {
      const sock = host.tcpAccept(p.sock, this.#client)
      if (sock < 0) return false
      const port = this.#guestOf(p)
      const i = port < 0 ? -1 : this.#insert(p, index, port, TCP)
      if (i < 0) {
        host.tcpReset(sock)
        continue
      }
      if (flows.ofPort(port) > limits.flowsPerVm) {
        drops.count(port, DROP['flow-limit'])
        flows.remove(i)
        host.tcpReset(sock)
        continue
      }
      flows.sock[i] = sock
      host.watch(sock, this.#x.ref(i))
      this.#tcp.accept(i)
    }
    return true
  }

  // -- UDP ----------------------------------------------------------------------------------------------------------

  #receive(p: Published, index: number): boolean {
    const { host, egress, limits } = this.#x
    const at = egress.l4at(4) + 8
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
    if (!this.#udp.makeRoom(port)) return -1
    const i = this.#insert(p, index, port, UDP)
    if (i >= 0) this.#udp.accept(i)
    return i
  }

  // -- both ---------------------------------------------------------------------------------------------------------

  #guestOf(p: Published): number {
    const port = this.#ports.withAddress(p.guest)
    if (port >= 0 && this.#ports.role[port] === ROLE.vm && !this.#config.isolated) return port
    this.#x.drops.count(-1, DROP['publish-no-guest'])
    return -1
  }

  /**
   * The UDP flow of the client at #client, or −1. A client that could show itself but whose tuple is taken (it uses one port of its
   * own for two published ones) is shown as .254 too.
   */
  #find(p: Published, index: number, port: number): number {
    const { flows, host } = this.#x
    const b = this.#arena.bytes
    const config = this.#config
    const clientPort = host.peerPort
    this.#stale = -1
    if (showsItself(b, this.#client, config.subnet, config.mask)) {
      this.#shown = mapped(b, this.#client)
      this.#shownPort = clientPort
      const i = find4(flows, port, p.proto, p.guest, p.guestPort, this.#shown, clientPort)
      if (i < 0) return -1
      if (flows.publish[i] === index) {
        if (p.proto === UDP) return i
        // The kernel took a new connection of the same client and port: the old one is dead.
        this.#stale = i
        return -1
      }
    }
    this.#shown = config.hostAddress
    this.#shownPort = -1
    for (let n = 0; n < TRIES; n++) {
      const candidate = shownPort(b, this.#client, clientPort, p.guestPort, n)
      const i = find4(flows, port, p.proto, p.guest, p.guestPort, config.hostAddress, candidate)
      if (i < 0) {
        if (this.#shownPort < 0) this.#shownPort = candidate
      } else if (p.proto === UDP && flows.publish[i] === index && this.#isFar(i, clientPort)) return i
    }
    return -1
  }

  #isFar(i: number, clientPort: number): boolean {
    const { flows } = this.#x
    const b = this.#arena.bytes
    const at = this.#client
    return (
      flows.farPort[i] === clientPort &&
      flows.far3[i] === be32(b, at + 12) &&
      flows.far2[i] === be32(b, at + 8) &&
      flows.far1[i] === be32(b, at + 4) &&
      flows.far0[i] === be32(b, at)
    )
  }

  #insert(p: Published, index: number, port: number, proto: number): number {
    const { flows, host, drops } = this.#x
    const b = this.#arena.bytes
    const clientPort = host.peerPort
    this.#find(p, index, port)
    if (this.#shownPort < 0) {
      drops.count(port, DROP['publish-ports'])
      return -1
    }
    if (this.#stale >= 0) this.#tcp.abort(this.#stale)
    const i = insert4(flows, port, proto, p.guest, p.guestPort, this.#shown, this.#shownPort, IN, host.now())
    if (i < 0) {
      drops.count(port, DROP['flow-table-full'])
      return -1
    }
    const at = this.#client
    setFar(flows, i, be32(b, at), be32(b, at + 4), be32(b, at + 8), be32(b, at + 12))
    flows.farPort[i] = clientPort
    flows.publish[i] = index
    flows.sock[i] = proto === UDP ? p.sock : -1
    return i
  }
}
