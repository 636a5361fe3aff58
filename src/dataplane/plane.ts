/**
 * The data plane of one network: the engine joined to nics, host sockets and the control socket, and the loop that drives them.
 *
 * Owns: what each control message means, which descriptors are nics, the order of a turn, what happens when something throws.
 * Never does: anything with a frame, a flow or a byte of the control socket.
 *
 * A turn: wait (not longer than the next timer; patience.ts), the clock once, what is ready (each nic a burst, each socket its budget), what asked to be
 * called again, timers, what was captured. Acknowledgments that are owed go out before a sleep, or after a millisecond: until then an answer may carry them. What nobody waits for
 * (ends of connections, the socket of the next one: later.ts, tcp.ts) is done while nothing is ready. A socket that was not finished makes the next wait return at once, so nobody waits for
 * it longer than one turn.
 *
 * Faults: an exception in a nic's burst or a socket's turn is a mistake of ours. It ends that turn, is counted as the drop `fault`, is logged
 * (not more often than LOG_EVERY) and everybody else goes on. An exception anywhere else ends the process; the daemon starts it again.
 */
import type { Arena } from '../netstack/arena.ts'
import type { NetstackEvent, Ref } from '../netstack/host.ts'
import { Network } from '../netstack/network.ts'
import { ROLE } from '../netstack/switch/port.ts'
import { SoftwareOffload } from '../netstack/switch/segment.ts'
import { DROP } from '../netstack/trace/drops.ts'
import { close } from '../sys/fd.ts'
import { Backlog } from './backlog.ts'
import { Burst } from './burst.ts'
import { CaptureStreams } from './captures.ts'
import { DgramPort } from './dgram.ts'
import { GiveBack } from './give-back.ts'
import { DataPlaneHost } from './host.ts'
import { Patience } from './patience.ts'
import { type Nic, type NicOptions, type NicPort, PacketPort, TapPort } from './ports.ts'
import {
  type EventMessage,
  type HelloAnswer,
  type NetworkConfig,
  PROTOCOL_VERSION,
  type Request,
  type StatsAnswer,
} from './protocol.ts'
import type { Reactor } from './reactor.ts'
import { TurnEnd } from './turn-end.ts'
import { headerScratch, VhostPort } from './vhost/port.ts'

/** The longest sleep, in ms: the control socket's file is looked at, and housekeeping is due about as often. */
const SLEEP_MAX = 1000
/** A timer that was set since the last look at all of them is at most this late, in ms (netstack/timers.ts TICK). */
const TIMER_GRAIN = 4
const WARNINGS_KEPT = 50
const LOG_EVERY = 1000
/** Sockets that may ask to be called again in one turn; more of them wait for their next event. */
const AGAIN_MAX = 4096

type Attach = Extract<Request, { op: 'attach' }>
type Publish = Extract<Request, { op: 'publish' }>
type Uplink = Extract<Request, { op: 'uplink' }>
type Member = Extract<Request, { op: 'member' }>
type CaptureRequest = Extract<Request, { op: 'capture' }>

interface PlaneOptions {
  readonly reactor: Reactor
  readonly arena: Arena
  readonly log: (line: string) => void
  readonly notify: (event: EventMessage) => void
  /** Asked about once a second; false ends the loop. */
  readonly wanted: () => boolean
}

export class Plane {
  readonly #o: PlaneOptions
  readonly #reactor: Reactor
  readonly #host: DataPlaneHost
  readonly #slot: number
  readonly #burst: Burst | undefined
  readonly #nics = new Map<string, Nic>()
  readonly #idOfPort: string[] = []
  // On a kernel's bridge: the one nic, and who is behind it.
  #uplink: NicPort | undefined
  readonly #members = new Map<string, Member>()
  readonly #indexOf = new Map<string, number>()
  readonly #publishes = new Map<string, string>()
  /** Descriptors that are only kept. */
  readonly #held = new Map<string, number>()
  readonly #captures: CaptureStreams
  readonly #patience: Patience
  readonly #turnEnd = new TurnEnd()
  readonly #giveBack = new GiveBack()
  /** Made for the first nic that needs it. */
  #backlog: Backlog | undefined
  #finisher: { readonly software: SoftwareOffload; readonly headerAt: number } | undefined
  readonly #warnings: string[] = []
  #config: NetworkConfig | undefined
  #network: Network | undefined
  #stopping = false
  // Sockets to be called again, as columns; a serial tells that the descriptor is still the same socket.
  readonly #againRef = new Int32Array(AGAIN_MAX)
  readonly #againFd = new Int32Array(AGAIN_MAX)
  readonly #againSerial = new Int32Array(AGAIN_MAX)
  readonly #againEvents = new Int32Array(AGAIN_MAX)
  #again = 0
  #faults = 0
  #loggedAt = Number.NEGATIVE_INFINITY

  constructor(o: PlaneOptions) {
    this.#o = o
    this.#reactor = o.reactor
    this.#host = new DataPlaneHost(o.reactor, o.arena, (e) => this.#event(e))
    this.#captures = new CaptureStreams(o.reactor, o.log)
    this.#patience = new Patience(o.reactor)
    this.#slot = o.arena.slot()
    this.#burst = Burst.open(o.arena, this.#host.sockets.base)
    this.#host.gather.onLost = (datagrams) => {
      for (let n = 0; n < datagrams; n++) this.#network?.drops.count(-1, DROP['host-send'])
    }
    o.reactor.onSocket = (ref, events, fd) => this.#ready(ref, events, fd)
    o.reactor.onFault = (error, fd) => this.#fault(error, fd)
  }

  // -- control -------------------------------------------------------------------------------------------------------

  /** Carry a control message out. Owns `fds`, also when it throws. */
  handle(r: Request, fds: readonly number[]): unknown {
    try {
      switch (r.op) {
        case 'hello':
          return this.#hello()
        case 'configure':
          return this.#configure(r.network, r.resolvers)
        case 'attach':
          return this.#attach(r, fds)
        case 'uplink':
          return this.#setUplink(r, taken(fds))
        case 'member':
          return this.#member(r)
        case 'detach':
          return this.#detach(r.id)
        case 'publish':
          return this.#publish(r, taken(fds))
        case 'hold':
          return this.#hold(r.id, taken(fds))
        case 'unpublish':
          if (this.#publishes.delete(r.id)) this.#network?.unpublish(r.id)
          this.#release(r.id)
          return
        case 'rawIcmp':
          return this.#host.adoptRawIcmp(taken(fds))
        case 'capture':
          return this.#capture(r, taken(fds))
        case 'stats':
          return this.#stats()
        case 'stop':
          this.#network?.retire()
          this.#stopping = true
          return
        default:
          throw new Error(`unknown operation ${(r as { op?: unknown }).op}`)
      }
    } catch (error) {
      for (const fd of fds) close(fd)
      throw error
    }
  }

  #hello(): HelloAnswer {
    return {
      version: PROTOCOL_VERSION,
      pid: process.pid,
      attachments: [...this.#nics.keys(), ...this.#members.keys()],
      publishes: [...this.#publishes.keys(), ...this.#held.keys()],
      configured: this.#network !== undefined,
      uplink: this.#uplink !== undefined,
    }
  }

  #configure(config: NetworkConfig, resolvers: readonly string[]): void {
    if (this.#network === undefined) this.#network = new Network(this.#host, config)
    else if (fixed(config) !== fixed(this.#config as NetworkConfig))
      throw new Error(`the network ${config.name} cannot become another one while it runs`)
    this.#config = config
    this.#network.allowHostPorts(config.allowHostPorts)
    this.#network.setResolvers(resolvers)
  }

  #configured(): Network {
    if (this.#network === undefined) throw new Error('configure comes first')
    return this.#network
  }

  #attach(a: Attach, fds: readonly number[]): void {
    const network = this.#configured()
    const nic = this.#open(a, fds)
    nic.index = network.attach({
      id: a.id,
      role: a.role === 'host' ? ROLE.host : ROLE.vm,
      name: a.name,
      mac: a.mac,
      address: a.address,
      address6: a.address6,
      bound: a.bound,
      port: nic,
    })
    this.#nics.get(a.id)?.close()
    this.#nics.set(a.id, nic)
    this.#idOfPort[nic.index] = a.id
    nic.start()
  }

  #open({ kind, vnetHdr }: Attach, fds: readonly number[]): Nic {
    const queues = kind === 'packet' || kind === 'tap'
    const options = this.#nicOptions(queues ? fds : [taken(fds)], vnetHdr)
    switch (kind) {
      case 'tap':
        return new TapPort(options)
      case 'packet':
        return new PacketPort(options)
      case 'dgram':
        this.#backlog ??= new Backlog(this.#o.arena, (this.#config as NetworkConfig).mtu)
        return new DgramPort(options, this.#backlog, this.#turnEnd)
      case 'vhost-user':
        return this.#openVhost(options)
      default:
        throw new Error(`unknown kind of nic ${kind}`)
    }
  }

  #openVhost(o: NicOptions): VhostPort {
    const { arena } = this.#o
    this.#finisher ??= { software: new SoftwareOffload(arena), headerAt: headerScratch(arena) }
    const broken = (index: number, why: string): void => {
      const drops = this.#network?.drops
      drops?.countNamed(index, 'virtio', 'the guest’s driver broke the rules of its rings; its nic was reset')
      const message = `a virtio-net nic was reset: ${why}`
      this.#event({ type: 'warning', message })
    }
    const [fd] = o.fds as [number]
    const { software, headerAt } = this.#finisher
    return new VhostPort({ ...o, fd, turnEnd: this.#turnEnd, software, broken }, headerAt)
  }

  #nicOptions(fds: readonly number[], vnetHdr: boolean): NicOptions {
    const { reactor, arena } = this.#o
    const network = this.#configured()
    const { gather, sockets } = this.#host
    const endOfBurst = (): void => gather.flush()
    const { base } = sockets
    return { fds, vnetHdr, reactor, arena, base, slot: this.#slot, burst: this.#burst, network, endOfBurst }
  }

  /** The one nic of a network on a kernel's bridge; members that were there speak through the new one. */
  #setUplink(u: Uplink, fd: number): void {
    const nic = new TapPort(this.#nicOptions([fd], u.vnetHdr))
    this.#uplink?.close()
    this.#uplink = nic
    for (const m of this.#members.values()) this.#join(m)
    nic.start()
  }

  #member(m: Member): void {
    this.#join(m)
    this.#members.set(m.id, m)
  }

  #join({ id, name, mac, address, address6, bound }: Member): void {
    if (this.#uplink === undefined) throw new Error('uplink comes first')
    const port = this.#uplink
    const index = this.#configured().attach({ id, role: ROLE.vm, name, mac, address, address6, bound, port })
    this.#idOfPort[index] = id
    this.#indexOf.set(id, index)
  }

  #capture({ id, attachment, snapLength }: CaptureRequest, fd: number): void {
    let only = -1
    if (attachment !== undefined) {
      const index = this.#nics.get(attachment)?.index ?? this.#indexOf.get(attachment)
      if (index === undefined) throw new Error('it is not attached')
      only = index
    }
    this.#captures.begin(this.#configured(), fd, { id, attachment, only, snapLength })
  }

  #detach(id: string): void {
    this.#captures.gone(id)
    const member = this.#indexOf.get(id)
    if (this.#members.delete(id) && member !== undefined) {
      this.#indexOf.delete(id)
      this.#network?.detach(member)
      return
    }
    const nic = this.#nics.get(id)
    if (nic === undefined) return
    this.#nics.delete(id)
    this.#network?.detach(nic.index)
    nic.close()
  }

  #publish(p: Publish, fd: number): void {
    const network = this.#configured()
    const spec = [p.proto, p.hostAddress, p.hostPort, p.guestAddress, p.guestAddress6 ?? '', p.guestPort].join()
    const before = this.#publishes.get(p.id)
    if (before === spec) {
      close(fd)
      return
    }
    if (before !== undefined) network.unpublish(p.id)
    const sock = p.proto === 'tcp' ? this.#host.adoptListener(fd) : this.#host.adoptUdp(fd)
    // By any of its addresses: a VM is there in both families.
    network.publish({ ...p, guestAddress: p.guestAddress || (p.guestAddress6 ?? ''), sock })
    this.#publishes.set(p.id, spec)
  }

  #hold(id: string, fd: number): void {
    this.#release(id)
    this.#held.set(id, fd)
  }

  #release(id: string): void {
    const fd = this.#held.get(id)
    if (fd === undefined) return
    this.#held.delete(id)
    close(fd)
  }

  #stats(): StatsAnswer {
    const stats = this.#configured().stats()
    return { ...stats, warnings: [...stats.warnings, ...this.#warnings] }
  }

  #event(e: NetstackEvent): void {
    if (e.type === 'warning') {
      if (this.#warnings.push(e.message) > WARNINGS_KEPT) this.#warnings.shift()
      this.#o.notify({ event: 'warning', message: e.message })
      return
    }
    const id = this.#idOfPort[e.port]
    if (id === undefined) return
    const { address, expiresInMs } = e
    this.#o.notify({ event: 'lease', id, address, state: e.state as 'bound', expiresInMs })
  }

  // -- turns ---------------------------------------------------------------------------------------------------------

  #ready(ref: Ref, events: number, fd: number): void {
    this.#host.delivering(fd, events)
    if (!this.#network?.ready(ref, events)) return
    if (this.#again === AGAIN_MAX) return
    const n = this.#again++
    this.#againRef[n] = ref
    this.#againFd[n] = fd
    this.#againSerial[n] = this.#reactor.serialOf(fd)
    this.#againEvents[n] = events
  }

  /** Call those again that were not finished in the last turn; they may ask once more. */
  #callAgain(count: number): void {
    for (let n = 0; n < count; n++) {
      const fd = this.#againFd[n] as number
      if (this.#reactor.serialOf(fd) !== this.#againSerial[n]) continue
      try {
        this.#ready(this.#againRef[n] as number, this.#againEvents[n] as number, fd)
      } catch (error) {
        this.#fault(error, fd)
      }
    }
    // What was asked for meanwhile lies behind the first `count`.
    const rest = this.#again - count
    for (const column of [this.#againRef, this.#againFd, this.#againSerial, this.#againEvents])
      column.copyWithin(0, count, this.#again)
    this.#again = rest
  }

  readonly #rest = (): void => {
    const { sockets, tcp } = this.#host
    sockets.later.all()
    tcp.spare()
    this.#network?.flush()
    this.#turnEnd.run()
  }

  readonly #spare = (now: number): boolean => {
    const network = this.#network
    if (network?.urgent) {
      network.flush()
      return true
    }
    return this.#host.sockets.later.one(now) || this.#host.tcp.spare()
  }

  /** Until `stop`, or until nobody wants it any more. */
  run(): void {
    const reactor = this.#reactor
    const host = this.#host
    let lookedAt = -1
    let wakeAt = 0
    let wantedAt = 0
    while (!this.#stopping) {
      const network = this.#network
      const now = host.now()
      let timeout = SLEEP_MAX
      if (this.#again > 0) timeout = 0
      else if (network !== undefined) {
        // Looking at all timers costs more than a small frame: once in a millisecond is enough.
        if (now !== lookedAt) {
          wakeAt = network.nextWake()
          lookedAt = now
          timeout = Math.max(0, Math.min(wakeAt - now, SLEEP_MAX))
        } else {
          timeout = Math.max(0, Math.min(wakeAt - now, TIMER_GRAIN))
        }
      }
      if (this.#captures.active) this.#captures.pump()
      const again = this.#again
      this.#turnEnd.run()
      const ready = this.#patience.wait(timeout, this.#rest, this.#spare)
      this.#giveBack.turn()
      const clock = host.refreshClock()
      reactor.dispatch(ready)
      if (again > 0) this.#callAgain(again)
      this.#network?.tick()
      host.gather.flush()
      host.sockets.later.overdue()
      if (clock >= wantedAt) {
        wantedAt = clock + SLEEP_MAX
        if (!this.#o.wanted()) break
        this.#giveBack.second(ready === 0)
      }
    }
    host.sockets.later.all()
  }

  #fault(error: unknown, fd: number): void {
    this.#faults++
    let index = -1
    for (const nic of this.#nics.values()) if (nic.is(fd)) index = nic.index
    this.#network?.drops.countNamed(index, 'fault', 'a mistake of noid itself; the log of the data plane has it')
    const now = this.#host.now()
    if (now - this.#loggedAt < LOG_EVERY) return
    this.#loggedAt = now
    this.#o.log(`fault ${this.#faults}: ${error instanceof Error ? error.stack : String(error)}`)
  }
}

/** What may not change while a network runs. */
const fixed = (c: NetworkConfig): string => JSON.stringify({ ...c, allowHostPorts: undefined, name: undefined })

function taken(fds: readonly number[]): number {
  const [fd] = fds
  if (fd === undefined || fds.length !== 1) throw new Error(`one descriptor is needed, ${fds.length} came`)
  return fd
}
