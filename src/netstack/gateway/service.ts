/**
 * The contract of a service of the gateway (DHCP, DNS): datagrams in, datagrams out; byte streams for DNS over TCP.
 *
 * A service is pure: it is given bytes of the arena and where they came from, and answers through the `reply` it was
 * composed with. It never sees Ethernet or IP, and never another network.
 */
import type { Frame } from '../frame.ts'
import type { Address } from '../wire/address.ts'
import { UDP } from '../wire/udp.ts'

export interface Datagram {
  /** The switch port it came in by: who asks. */
  readonly port: number
  /** Payload in the arena; valid during the call. */
  readonly off: number
  readonly len: number
  /** Where it came from and where it was sent to, in either family. Filled anew for the next datagram: whoever keeps them copies. */
  readonly src: Address
  readonly srcPort: number
  readonly dst: Address
  readonly dstPort: number
}

/**
 * Send a datagram to a guest, in the family of `dst`. The payload lies in `bytes`; it is copied, as the addresses are. `dst`: 255.255.255.255, or
 * an address of the port's (link-local too); `src` of the same family. `dstMac` is given as hi16/lo32 only where the address is not configured
 * yet (DHCP for IPv4); otherwise the station that the address was heard from is used.
 */
export type Reply = (
  port: number,
  src: Address,
  srcPort: number,
  dst: Address,
  dstPort: number,
  bytes: Uint8Array,
  len: number,
  dstMac?: { readonly hi: number; readonly lo: number },
) => void

export type Mutable<T> = { -readonly [K in keyof T]: T[K] }

/** Give a service what a UDP frame holds: one datagram, or several of gsoSize. `d` has its addresses and ports already. */
export function hand(service: DatagramService, f: Frame, d: Mutable<Datagram>): void {
  const size = f.gsoSize || f.l4len
  const end = f.l4 + f.l4len
  for (d.off = f.l4 + UDP; ; d.off += size) {
    d.len = Math.min(size, end - d.off)
    service.receive(d)
    if (d.off + size >= end) return
  }
}

export interface DatagramService {
  receive(d: Datagram): void
  /** Called at least every second while the network runs. */
  tick(now: number): void
}

/** One accepted connection to a service (DNS over TCP): bytes arrive, answers are appended. Bounded by the caller's window. */
export interface StreamHandler {
  /** Bytes of the guest; returns how many were taken. When less than all, nothing more is given until the service says `more`. */
  push(bytes: Uint8Array): number
  /** The guest's FIN, or a reset. */
  end(): void
}

export interface StreamService {
  /** `send` appends answer bytes (copied); false when the connection is gone or its buffer is full. `close` half-closes after them. */
  accept(port: number, send: (bytes: Uint8Array) => boolean, close: () => void, more: () => void): StreamHandler
  /** One of the switch port's connections was refused, because it has all that a VM may have. */
  refused?(port: number): void
}
