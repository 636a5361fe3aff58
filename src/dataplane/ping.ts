/**
 * ICMP echo to the outside, in both families: ping sockets where the system allows them (net.ipv4.ping_group_range, icmp(7); it rules over
 * IPv6 as well), otherwise shares of a raw socket that the daemon handed over (raw-icmp.ts), one for each family.
 *
 * Theory. A ping socket is an ordinary descriptor: the kernel gives it an id and brings it only its own replies.
 */

import { EACCES, type IcmpError, type Ref, type Sock } from '../netstack/host.ts'
import { connectTo, IPPROTO_ICMP, IPPROTO_ICMPV6, isMapped, recv, SOCK_DGRAM, send } from '../sys/socket.ts'
import { RawIcmp, SHARE, SHARES } from './raw-icmp.ts'
import { KIND, type Sockets } from './sockets.ts'

export { SHARE } from './raw-icmp.ts'

export class PingSockets {
  readonly #sockets: Sockets
  readonly #bytes: Uint8Array
  readonly #base: number
  readonly #reportErrors: (fd: Sock) => void
  readonly #raw4: RawIcmp
  readonly #raw6: RawIcmp

  /** @param random 16 bits or more: ids of different data planes should differ */
  constructor(sockets: Sockets, reportErrors: (fd: Sock) => void, random: number) {
    this.#sockets = sockets
    this.#bytes = sockets.arena.bytes
    this.#base = sockets.base
    this.#reportErrors = reportErrors
    this.#raw4 = new RawIcmp(sockets, false, random)
    this.#raw6 = new RawIcmp(sockets, true, random)
  }

  /** Use this raw ICMP or ICMPv6 socket (its descriptor is ours from now on) where ping sockets are not allowed. */
  useRaw(fd: number, six: boolean): void {
    ;(six ? this.#raw6 : this.#raw4).use(fd)
  }

  open(dst: number): Sock {
    const s = this.#sockets
    const four = isMapped(this.#bytes, dst)
    const fd = s.make(dst, SOCK_DGRAM, four ? IPPROTO_ICMP : IPPROTO_ICMPV6, KIND.ping)
    const raw = four ? this.#raw4 : this.#raw6
    if (fd < 0) return fd === -EACCES && raw.ready ? raw.open(dst) : fd
    this.#reportErrors(fd)
    const r = connectTo(fd, this.#bytes, dst, 0)
    if (r >= 0) return fd
    s.close(fd)
    return r
  }

  /** Whose share it is. */
  #of(sock: Sock): RawIcmp {
    return sock < SHARE + SHARES ? this.#raw4 : this.#raw6
  }

  send(sock: Sock, off: number, len: number): number {
    return sock < SHARE ? send(sock, this.#base + off, len) : this.#of(sock).send(sock, off, len)
  }

  recv(sock: Sock, off: number, max: number): number {
    return sock < SHARE ? recv(sock, this.#base + off, max) : this.#of(sock).recv(sock, off, max)
  }

  // -- of shares alone -------------------------------------------------------------------------------------------------

  recvError(sock: Sock, offender: number, icmp: IcmpError): number {
    return this.#of(sock).recvError(sock, offender, icmp)
  }

  watch(sock: Sock, ref: Ref): number {
    return this.#of(sock).watch(sock, ref)
  }

  setTtl(sock: Sock, ttl: number): number {
    return this.#of(sock).setTtl(sock, ttl)
  }

  setDontFragment(sock: Sock, on: number): number {
    return this.#of(sock).setDontFragment(sock, on)
  }

  close(sock: Sock): void {
    this.#of(sock).close(sock)
  }
}
