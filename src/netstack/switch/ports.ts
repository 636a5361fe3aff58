/**
 * The ports of a switch, as columns: who is attached, which address and MAC are theirs, and what passed.
 *
 * Owns: indices (stable while an id is attached; the lowest free one is given), identity, counters. Never does: forwarding.
 * Invariants: at most one port of role `host`; a free index has port null.
 */
import type { PortRow } from '../../plugins/contract.ts'
import { Address } from '../wire/address.ts'
import { macText } from '../wire/ethernet.ts'
import { type Port, ROLE, type Role } from './port.ts'

const NONE = new Address()

export interface Identity {
  readonly id: string
  readonly role: Role
  /** The VM's name. */
  readonly name: string
  readonly macHi: number
  readonly macLo: number
  /** 0: none. */
  readonly address: number
  readonly address6?: Address
}

export class Ports {
  readonly capacity: number
  /** One more than the highest index in use. */
  end = 0
  /** The host's port, −1 while there is none. */
  host = -1
  readonly port: (Port | null)[]
  readonly id: string[]
  readonly name: string[]
  readonly role: Uint8Array
  /** As assigned. */
  readonly macHi: Int32Array
  readonly macLo: Int32Array
  readonly address: Int32Array
  /** Four words for each port; all 0: none. */
  readonly address6: Int32Array
  /** Where the port's address was seen last: what frames of the gateway are sent to. */
  readonly neighbourHi: Int32Array
  readonly neighbourLo: Int32Array
  readonly framesIn: Float64Array
  readonly framesOut: Float64Array
  readonly bytesIn: Float64Array
  readonly bytesOut: Float64Array

  constructor(capacity: number) {
    this.capacity = capacity
    this.port = new Array<Port | null>(capacity).fill(null)
    this.id = new Array<string>(capacity).fill('')
    this.name = new Array<string>(capacity).fill('')
    this.role = new Uint8Array(capacity)
    this.macHi = new Int32Array(capacity)
    this.macLo = new Int32Array(capacity)
    this.address = new Int32Array(capacity)
    this.address6 = new Int32Array(capacity * 4)
    this.neighbourHi = new Int32Array(capacity)
    this.neighbourLo = new Int32Array(capacity)
    this.framesIn = new Float64Array(capacity)
    this.framesOut = new Float64Array(capacity)
    this.bytesIn = new Float64Array(capacity)
    this.bytesOut = new Float64Array(capacity)
  }

  indexOf(id: string): number {
    for (let i = 0; i < this.end; i++) if (this.port[i] !== null && this.id[i] === id) return i
    return -1
  }

  /** The VM that has an address of either family, or −1. */
  withAddress(a: Address): number {
    const four = a.family === 4
    if (a.w3 === 0 && (four || (a.w0 | a.w1 | a.w2) === 0)) return -1
    for (let i = 0; i < this.end; i++)
      if (this.port[i] !== null && this.role[i] === ROLE.vm && (four ? this.address[i] === a.w3 : this.has6(i, a)))
        return i
    return -1
  }

  has6(i: number, a: Address): boolean {
    const { address6 } = this
    const at = i << 2
    return address6[at + 3] === a.w3 && address6[at + 2] === a.w2 && address6[at + 1] === a.w1 && address6[at] === a.w0
  }

  /** The port's IPv6 address; :: when it has none. */
  read6(i: number, a: Address): Address {
    const { address6 } = this
    const at = i << 2
    return a.set(address6[at], address6[at + 1], address6[at + 2], address6[at + 3])
  }

  /** Throws RangeError when every index is taken, or a second host port is given. */
  add(who: Identity, port: Port): number {
    let i = 0
    while (i < this.end && this.port[i] !== null) i++
    if (i === this.capacity) throw new RangeError(`the switch has ${this.capacity} ports and all are taken`)
    this.framesIn[i] = this.framesOut[i] = this.bytesIn[i] = this.bytesOut[i] = 0
    this.#fill(i, who, port)
    if (i === this.end) this.end++
    return i
  }

  replace(i: number, who: Identity, port: Port): void {
    if (this.host === i) this.host = -1
    this.#fill(i, who, port)
  }

  #fill(i: number, who: Identity, port: Port): void {
    if (who.role === ROLE.host) {
      if (this.host >= 0) throw new RangeError('the network has a host port already')
      this.host = i
    }
    this.port[i] = port
    this.id[i] = who.id
    this.name[i] = who.name
    this.role[i] = who.role
    this.macHi[i] = this.neighbourHi[i] = who.macHi
    this.macLo[i] = this.neighbourLo[i] = who.macLo
    this.address[i] = who.address
    const a = who.address6 ?? NONE
    this.address6.set([a.w0, a.w1, a.w2, a.w3], i << 2)
  }

  remove(i: number): void {
    this.port[i] = null
    this.id[i] = ''
    if (this.host === i) this.host = -1
    while (this.end > 0 && this.port[this.end - 1] === null) this.end--
  }

  rows(): PortRow[] {
    const rows: PortRow[] = []
    for (let i = 0; i < this.end; i++)
      if (this.port[i] !== null)
        rows.push({
          vm: this.name[i],
          mac: macText(this.macHi[i], this.macLo[i]),
          framesIn: this.framesIn[i],
          framesOut: this.framesOut[i],
          bytesIn: this.bytesIn[i],
          bytesOut: this.bytesOut[i],
        })
    return rows
  }
}
