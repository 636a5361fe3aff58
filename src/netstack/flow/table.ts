/**
 * The flow table: every TCP, UDP and ping flow of one network, as columns of typed arrays.
 *
 * A flow is looked up by what its guest sees: switch port, protocol, own address and l4port, peer's address and l4port. IPv4
 * addresses are kept in their mapped form (::ffff:a.b.c.d), so that one table serves both families. Where the host side
 * really goes is in the `far` columns (NAT is the difference between `peer` and `far`). Host sockets find their flow by index
 * through the epoll reference, so only the guest's side needs the hash.
 *
 * Owns: the columns that all protocols share, the hash, a list per switch port in order of last use (the oldest is given up
 * first). Never does: sockets, timers, policy. A relay keeps columns of its own, indexed alike.
 * Invariants: index 0…capacity−1; an index is free, or in exactly one hash chain and one port list. Nothing allocates after construction.
 */
export const TCP = 6
export const UDP = 17
/** Ping flows: l4ports are the echo id (own) and 0 (peer). ICMPv6 uses the same relay. */
export const ICMP = 1

export const OUT = 0
export const IN = 1

const NONE = -1

/** IPv4-mapped third word: ::ffff:0:0. */
export const MAPPED = 0x0000ffff

export class FlowTable {
  readonly capacity: number
  count = 0

  // What the guest sees. An address is four columns of signed words in network order.
  readonly guest0: Int32Array
  readonly guest1: Int32Array
  readonly guest2: Int32Array
  readonly guest3: Int32Array
  readonly peer0: Int32Array
  readonly peer1: Int32Array
  readonly peer2: Int32Array
  readonly peer3: Int32Array
  readonly guestPort: Uint16Array
  readonly peerPort: Uint16Array
  readonly proto: Uint8Array
  /** 4 or 6: what the guest speaks. */
  readonly family: Uint8Array
  /** The switch port of the guest. */
  readonly port: Int32Array
  // Where the host side goes, when it is not `peer` (--allow-host: the host's loopback).
  readonly far0: Int32Array
  readonly far1: Int32Array
  readonly far2: Int32Array
  readonly far3: Int32Array
  readonly farPort: Uint16Array
  /** Who began: OUT the guest, IN a client of a published port. */
  readonly direction: Uint8Array
  /** Host socket, −1 while there is none. */
  readonly sock: Int32Array
  readonly createdAt: Float64Array
  readonly usedAt: Float64Array
  readonly bytesOut: Float64Array
  readonly bytesIn: Float64Array
  /** Published port it came by, −1 otherwise. */
  readonly publish: Int32Array

  readonly #seed: number
  readonly #mask: number
  readonly #bucket: Int32Array
  readonly #chain: Int32Array
  readonly #hash: Int32Array
  #free: number
  // Per switch port, least recently used first.
  readonly #oldest: Int32Array
  readonly #newest: Int32Array
  readonly #older: Int32Array
  readonly #newer: Int32Array
  readonly #perPort: Int32Array

  /**
   * @param capacity flows at most; a power of two
   * @param seed random: a guest must not choose its bucket
   */
  constructor(capacity: number, maxPorts: number, seed: number) {
    this.capacity = capacity
    const words = () => new Int32Array(capacity)
    this.guest0 = words()
    this.guest1 = words()
    this.guest2 = words()
    this.guest3 = words()
    this.peer0 = words()
    this.peer1 = words()
    this.peer2 = words()
    this.peer3 = words()
    this.far0 = words()
    this.far1 = words()
    this.far2 = words()
    this.far3 = words()
    this.guestPort = new Uint16Array(capacity)
    this.peerPort = new Uint16Array(capacity)
    this.farPort = new Uint16Array(capacity)
    this.proto = new Uint8Array(capacity)
    this.family = new Uint8Array(capacity)
    this.direction = new Uint8Array(capacity)
    this.port = words().fill(NONE)
    this.sock = words().fill(NONE)
    this.publish = words().fill(NONE)
    this.createdAt = new Float64Array(capacity)
    this.usedAt = new Float64Array(capacity)
    this.bytesOut = new Float64Array(capacity)
    this.bytesIn = new Float64Array(capacity)
    this.#seed = seed | 0
    this.#mask = capacity * 2 - 1
    this.#bucket = new Int32Array(capacity * 2).fill(NONE)
    this.#chain = words().fill(NONE)
    this.#hash = words()
    for (let i = 0; i < capacity; i++) this.#chain[i] = i + 1 < capacity ? i + 1 : NONE
    this.#free = 0
    this.#oldest = new Int32Array(maxPorts).fill(NONE)
    this.#newest = new Int32Array(maxPorts).fill(NONE)
    this.#older = words().fill(NONE)
    this.#newer = words().fill(NONE)
    this.#perPort = new Int32Array(maxPorts)
  }

  #hashOf(
    port: number,
    proto: number,
    g3: number,
    gp: number,
    p0: number,
    p1: number,
    p2: number,
    p3: number,
    pp: number,
  ): number {
    let h = this.#seed ^ Math.imul(g3, 0x9e3779b1) ^ Math.imul(p3, 0x85ebca6b)
    // A guest may choose all 128 bits of its peer: each word is mixed with the seed before the next one comes.
    if ((p0 | p1) !== 0) {
      h = Math.imul(h ^ (h >>> 15), 0x27d4eb2f) + p2
      h = Math.imul(h ^ (h >>> 13), 0x2c1b3c6d) + p1
      h = Math.imul(h ^ (h >>> 16), 0x9e3779b1) + p0
    }
    h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d) ^ Math.imul((gp << 16) | pp, 0xc2b2ae35)
    h = Math.imul(h ^ (h >>> 13), 0x297a2d39) ^ Math.imul((port << 8) | proto, 0x165667b1)
    return (h ^ (h >>> 16)) | 0
  }

  /** The flow of a tuple as its guest sees it, or −1. IPv4: words 0, 1 are 0 and word 2 is MAPPED. */
  lookup(
    port: number,
    proto: number,
    g0: number,
    g1: number,
    g2: number,
    g3: number,
    guestPort: number,
    p0: number,
    p1: number,
    p2: number,
    p3: number,
    peerPort: number,
  ): number {
    const h = this.#hashOf(port, proto, g3, guestPort, p0, p1, p2, p3, peerPort)
    let i = this.#bucket[h & this.#mask] as number
    while (i !== NONE) {
      if (
        this.#hash[i] === h &&
        this.guest3[i] === g3 &&
        this.peer3[i] === p3 &&
        this.guestPort[i] === guestPort &&
        this.peerPort[i] === peerPort &&
        this.proto[i] === proto &&
        this.port[i] === port &&
        this.peer2[i] === p2 &&
        this.peer1[i] === p1 &&
        this.peer0[i] === p0 &&
        this.guest2[i] === g2 &&
        this.guest1[i] === g1 &&
        this.guest0[i] === g0
      )
        return i
      i = this.#chain[i] as number
    }
    return NONE
  }

  /** Make a flow; `far` equals `peer` until NAT says otherwise. −1 when the table is full. The tuple must not be there already. */
  insert(
    port: number,
    proto: number,
    g0: number,
    g1: number,
    g2: number,
    g3: number,
    guestPort: number,
    p0: number,
    p1: number,
    p2: number,
    p3: number,
    peerPort: number,
    direction: number,
    now: number,
  ): number {
    const i = this.#free
    if (i === NONE) return NONE
    this.#free = this.#chain[i] as number
    const h = this.#hashOf(port, proto, g3, guestPort, p0, p1, p2, p3, peerPort)
    this.#hash[i] = h
    this.#chain[i] = this.#bucket[h & this.#mask] as number
    this.#bucket[h & this.#mask] = i
    this.port[i] = port
    this.proto[i] = proto
    this.family[i] = p2 === MAPPED && p1 === 0 && p0 === 0 ? 4 : 6
    this.guest0[i] = g0
    this.guest1[i] = g1
    this.guest2[i] = g2
    this.guest3[i] = g3
    this.guestPort[i] = guestPort
    this.far0[i] = this.peer0[i] = p0
    this.far1[i] = this.peer1[i] = p1
    this.far2[i] = this.peer2[i] = p2
    this.far3[i] = this.peer3[i] = p3
    this.farPort[i] = this.peerPort[i] = peerPort
    this.direction[i] = direction
    this.sock[i] = NONE
    this.publish[i] = NONE
    this.createdAt[i] = this.usedAt[i] = now
    this.bytesOut[i] = this.bytesIn[i] = 0
    this.#append(i, port)
    this.#perPort[port]!++
    this.count++
    return i
  }

  /** Free the index. The relay has closed the socket and cleared the timer. */
  remove(i: number): void {
    const b = (this.#hash[i] as number) & this.#mask
    let at = this.#bucket[b] as number
    if (at === i) this.#bucket[b] = this.#chain[i] as number
    else {
      while ((this.#chain[at] as number) !== i) at = this.#chain[at] as number
      this.#chain[at] = this.#chain[i] as number
    }
    const port = this.port[i] as number
    this.#unlink(i, port)
    this.#perPort[port]!--
    this.port[i] = NONE
    this.sock[i] = NONE
    this.#chain[i] = this.#free
    this.#free = i
    this.count--
  }

  /** The flow was used now: it is the last of its port to be given up. */
  touch(i: number, now: number): void {
    this.usedAt[i] = now
    const port = this.port[i] as number
    if (this.#newest[port] === i) return
    this.#unlink(i, port)
    this.#append(i, port)
  }

  inUse(i: number): boolean {
    return this.port[i] !== NONE
  }

  /** How many flows a switch port has. */
  ofPort(port: number): number {
    return this.#perPort[port] as number
  }

  /** The least recently used flow of a switch port, or −1; `newer` walks on from there. */
  oldest(port: number): number {
    return this.#oldest[port] as number
  }

  newer(i: number): number {
    return this.#newer[i] as number
  }

  #append(i: number, port: number): void {
    const last = this.#newest[port] as number
    this.#older[i] = last
    this.#newer[i] = NONE
    if (last === NONE) this.#oldest[port] = i
    else this.#newer[last] = i
    this.#newest[port] = i
  }

  #unlink(i: number, port: number): void {
    const older = this.#older[i] as number
    const newer = this.#newer[i] as number
    if (older === NONE) this.#oldest[port] = newer
    else this.#newer[older] = newer
    if (newer === NONE) this.#newest[port] = older
    else this.#older[newer] = older
  }
}
