/**
 * A guest's memory as its QEMU shares it: regions of guest-physical addresses, mapped here.
 *
 * Owns: the mappings, the log of pages that were written (VHOST_USER_SET_LOG_BASE), and the only copies between a guest and the arena.
 * Theory. The guest may name any address: nothing is touched that does not lie in a region whole, piece by piece. It may change its memory while
 * we look: what counts is what was copied, and nothing is read twice. QEMU owns the files, the guest cannot make them shorter.
 * A short copy is a loop of 64-bit words over views, which allocates nothing (BigInts that flow from one view into another are never made); a long
 * one is memcpy, whose addresses are boxed, as a system call's are. For the same reason a place is a region and an offset, not an address.
 * Invariant: after `close` no view of a mapping is left here. Whoever holds one elsewhere (ring.ts) has dropped it before.
 */
import type { Arena } from '../../netstack/arena.ts'
import { copy, type Mapping, mapShared, sizeOf, unmap } from '../../sys/memory.ts'

export const REGIONS_MAX = 8
const REGION_BYTES_MAX = 2 ** 42
const PAGE = 4096
const LONG = 2048

export interface RegionSpec {
  readonly guest: number
  readonly size: number
  readonly user: number
  readonly offset: number
}

export class Region {
  readonly guest: number
  readonly size: number
  readonly user: number
  readonly view: DataView
  readonly bytes: Uint8Array
  readonly mapping: Mapping

  constructor(s: RegionSpec, mapping: Mapping) {
    this.guest = s.guest
    this.size = s.size
    this.user = s.user
    this.mapping = mapping
    this.view = new DataView(mapping.buffer)
    this.bytes = new Uint8Array(mapping.buffer)
  }
}

export class GuestMemory {
  readonly #regions: Region[] = []
  readonly #bytes: Uint8Array
  readonly #view: DataView
  readonly #base: number
  #last: Region | undefined
  /** Of the last `locate`. */
  at = 0
  #logMapping: Mapping | undefined
  #log: Uint8Array | undefined

  /** @param base address of the arena's first byte */
  constructor(arena: Arena, base: number) {
    this.#bytes = arena.bytes
    this.#view = arena.view
    this.#base = base
  }

  /** Map a region. @throws when it is not sane, or not there */
  add(s: RegionSpec, fd: number): void {
    if (this.#regions.length === REGIONS_MAX) throw new Error(`more than ${REGIONS_MAX} regions of memory`)
    const sane = s.size > 0 && s.size % PAGE === 0 && s.offset % PAGE === 0 && s.size <= REGION_BYTES_MAX
    if (!sane || !Number.isSafeInteger(s.guest + s.size) || !Number.isSafeInteger(s.user + s.size))
      throw new Error(`a region of memory that cannot be: ${s.size} bytes at ${s.guest}`)
    if (sizeOf(fd) < s.offset + s.size) throw new Error('a region of memory beyond the end of its file')
    const mapping = mapShared(fd, s.offset, s.size)
    if (typeof mapping === 'number') throw new Error(`a region of memory cannot be mapped: ${mapping}`)
    this.#regions.push(new Region(s, mapping))
  }

  /** The region with the guest-physical address of these two words, or undefined; `at` is how far it is in there. */
  locate(high: number, low: number): Region | undefined {
    const address = high * 0x1_0000_0000 + (low >>> 0)
    const last = this.#last
    if (last !== undefined && address >= last.guest && address < last.guest + last.size) {
      this.at = address - last.guest
      return last
    }
    for (let i = 0; i < this.#regions.length; i++) {
      const r = this.#regions[i] as Region
      if (address < r.guest || address >= r.guest + r.size) continue
      this.at = address - r.guest
      this.#last = r
      return r
    }
    return undefined
  }

  /** The region that begins where this one ends: RAM that lies together may be shared in pieces. */
  #behind(r: Region): Region | undefined {
    return this.#regions.find((x) => x.guest === r.guest + r.size)
  }

  /** The region with an address of QEMU's own, in which `length` bytes follow. @throws when there is none */
  ofUser(at: number, length: number): Region {
    const r = this.#regions.find((x) => at >= x.user && at + length <= x.user + x.size)
    if (r === undefined) throw new Error('a ring outside the memory')
    return r
  }

  /** Copy from `from` in a region, and what is behind it, to the arena; false when it is not all memory. */
  read(region: Region, from: number, len: number, to: number): boolean {
    for (let r: Region | undefined = region; r !== undefined; r = this.#behind(r), from = 0) {
      let n = Math.min(len, r.size - from)
      len -= n
      if (n >= LONG) {
        copy(this.#base + to, r.mapping.address + from, n)
        to += n
      } else {
        const source = r.view
        const target = this.#view
        for (; n >= 8; n -= 8, from += 8, to += 8) target.setBigInt64(to, source.getBigInt64(from, true), true)
        for (; n > 0; n--) this.#bytes[to++] = r.bytes[from++] as number
      }
      if (len === 0) return true
    }
    return false
  }

  /** Copy from the arena to `to` in a region, and what is behind it; false when it is not all memory. */
  write(region: Region, to: number, len: number, from: number): boolean {
    if (this.#log !== undefined) this.wrote(region.guest + to, len)
    for (let r: Region | undefined = region; r !== undefined; r = this.#behind(r), to = 0) {
      let n = Math.min(len, r.size - to)
      len -= n
      if (n >= LONG) {
        copy(r.mapping.address + to, this.#base + from, n)
        from += n
      } else {
        const source = this.#view
        const target = r.view
        for (; n >= 8; n -= 8, from += 8, to += 8) target.setBigInt64(to, source.getBigInt64(from, true), true)
        for (; n > 0; n--) r.bytes[to++] = this.#bytes[from++] as number
      }
      if (len === 0) return true
    }
    return false
  }

  // -- the log -------------------------------------------------------------------------------------------------------

  get logging(): boolean {
    return this.#log !== undefined
  }

  /** Pages that are written from now on are marked in a file of QEMU's. */
  logTo(fd: number, offset: number, size: number): void {
    if (!(size > 0 && size <= REGION_BYTES_MAX) || sizeOf(fd) < offset + size) throw new Error('a log that cannot be')
    const mapping = mapShared(fd, offset, size)
    if (typeof mapping === 'number') throw new Error(`the log cannot be mapped: ${mapping}`)
    this.#dropLog()
    this.#logMapping = mapping
    this.#log = new Uint8Array(mapping.buffer)
  }

  /** Mark the pages of guest-physical addresses. */
  wrote(at: number, len: number): void {
    const log = this.#log
    if (log === undefined || len === 0) return
    const last = Math.floor((at + len - 1) / PAGE)
    for (let page = Math.floor(at / PAGE); page <= last; page++) {
      const byte = Math.floor(page / 8)
      if (byte >= log.length) return
      Atomics.or(log, byte, 1 << (page & 7))
    }
  }

  #dropLog(): void {
    const mapping = this.#logMapping
    this.#log = this.#logMapping = undefined
    if (mapping !== undefined) unmap(mapping)
  }

  /** Take over another one's log: the regions are new, the log goes on. */
  adoptLog(from: GuestMemory): void {
    this.#log = from.#log
    this.#logMapping = from.#logMapping
    from.#log = from.#logMapping = undefined
  }

  close(): void {
    this.#last = undefined
    this.#dropLog()
    for (const r of this.#regions.splice(0)) unmap(r.mapping)
  }
}
