/** A network in memory for micro-benchmarks: a host that remembers nothing, guests' ports that swallow what they are given. */
import { VNET } from '../../src/netstack/arena.ts'
import { EAGAIN } from '../../src/netstack/host.ts'
import { Network } from '../../src/netstack/network.ts'
import { ROLE } from '../../src/netstack/switch/port.ts'
import { MemoryHost } from '../../test/netstack/memory-host.ts'
import { type Build, CONFIG, IPV6, type Sender } from '../../test/netstack/net.ts'

/** Sockets that take everything at once and give datagrams of 100 bytes while `waiting` says so. */
export class FastHost extends MemoryHost {
  waiting = 0
  override udpSend(_sock: number, _off: number, len: number): number {
    return len
  }
  override udpRecv(_sock: number, _off: number, _max: number): number {
    this.segment = 0
    return this.waiting-- > 0 ? 100 : -EAGAIN
  }
  override tcpSend(_sock: number, _off: number, len: number): number {
    return len
  }
  override close(sock: number): void {
    super.close(sock)
    this.sockets.delete(sock)
  }
  override tcpFree(): number {
    return 1 << 20
  }
}

export const self: Sender = { mac: '02:00:00:00:00:01', ip: '192.168.100.11', ip6: 'fd00:6::11' }

export class Rig {
  readonly host = new FastHost()
  readonly network = new Network(this.host, { ...CONFIG, ipv6: IPV6 })
  readonly slot = this.host.arena.slot()
  /** What the first guest's port was given last: its offset and length. */
  lastOff = 0
  lastLen = 0
  sent = 0
  readonly guest: number
  readonly other: number

  constructor() {
    this.guest = this.#attach(1, (off, len) => {
      this.lastOff = off
      this.lastLen = len
      this.sent++
    })
    this.other = this.#attach(2, () => {
      this.sent++
    })
  }

  #attach(n: number, took: (off: number, len: number) => void): number {
    return this.network.attach({
      id: `vm${n}`,
      role: ROLE.vm,
      name: `vm${n}`,
      mac: `02:00:00:00:00:0${n}`,
      address: `192.168.100.1${n}`,
      address6: `fd00:6::1${n}`,
      bound: true,
      port: {
        offload: true,
        transmit: (off, len) => {
          took(off, len)
          return len
        },
        flush: () => {},
      },
    })
  }

  /** Put a frame into the slot; its length. */
  load(build: Build): number {
    const { bytes } = build(self)
    this.host.arena.bytes.set(bytes, this.slot)
    this.host.arena.bytes.fill(0, this.slot - VNET, this.slot)
    return bytes.length
  }

  /** The guest's frame in the slot comes in. */
  receive(len: number): void {
    this.network.receive(this.guest, this.slot, len)
  }

  deliver(): void {
    this.host.deliver(this.network)
    this.network.flush()
  }
}
