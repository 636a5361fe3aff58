/**
 * A link as a DHCP client sees it: frames in and out of one device of this network namespace, and its configuration.
 *
 * Frames go through a packet socket, so that neither a missing address nor the VM's own firewall is in the way.
 * Throws SysError when the device is not there or may not be configured.
 */
import { errno, must, SysError } from '../../sys/errno.ts'
import { close } from '../../sys/fd.ts'
import { addressOf, declare, result } from '../../sys/libc.ts'
import { addRoute, linkIndex, linkMac, linkMtu, setLinkAddress, setLinkMtu, setLinkUp } from '../../sys/netdev.ts'
import { bindPacket } from '../../sys/packet.ts'
import { AF_PACKET, recv, SOCK_NONBLOCK, SOCK_RAW, send, setOption, socket } from '../../sys/socket.ts'
import type { Lease } from './lease.ts'

const c = {
  poll: declare<(fds: number, n: number, timeoutMs: number) => number>('int poll(uintptr_t, unsigned long, int)'),
}
const ETH_P_IP = 0x0800
const SOL_PACKET = 263
const PACKET_IGNORE_OUTGOING = 23
const POLLIN = 1

export class Link {
  readonly name: string
  readonly mac: string
  readonly #fd: number
  readonly #buffer = Buffer.alloc(65536)
  readonly #address = addressOf(this.#buffer)
  readonly #pollfd = new Int32Array(2)
  readonly #poll = addressOf(new Uint8Array(this.#pollfd.buffer))

  constructor(name: string) {
    this.name = name
    const index = must(`the device ${name}`, linkIndex(name))
    const mac = linkMac(name)
    if (typeof mac === 'number') throw new SysError(`the device ${name}`, mac)
    this.mac = [...mac].map((x) => x.toString(16).padStart(2, '0')).join(':')
    must(`${name} up`, setLinkUp(name))
    this.#fd = must('packet socket', socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0))
    setOption(this.#fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    must(`packet socket on ${name}`, bindPacket(this.#fd, index, ETH_P_IP))
    this.#pollfd[0] = this.#fd
    this.#pollfd[1] = POLLIN
  }

  /** Lost when the device has no carrier yet: retransmission is the client's. */
  send(frame: Buffer): void {
    send(this.#fd, addressOf(frame), frame.length)
  }

  /** Wait for a frame, at most so long; undefined when there is none. The frame is valid until the next call. */
  receive(timeoutMs: number): Buffer | undefined {
    const n = recv(this.#fd, this.#address, this.#buffer.length)
    if (n > 0) return this.#buffer.subarray(0, n)
    if (timeoutMs <= 0) return undefined
    result(c.poll(this.#poll, 1, Math.ceil(timeoutMs)))
    const again = recv(this.#fd, this.#address, this.#buffer.length)
    return again > 0 ? this.#buffer.subarray(0, again) : undefined
  }

  /** Give the link what a lease grants. What is so already is left alone, and flows with it. */
  configure(l: Lease, before: Lease | undefined, mtu: number | undefined): void {
    const size = l.mtu ?? mtu
    if (size !== undefined && size !== linkMtu(this.name)) must(`MTU ${size}`, setLinkMtu(this.name, size))
    if (before === undefined || before.address !== l.address || before.prefix !== l.prefix)
      must(`address ${l.address}`, setLinkAddress(this.name, l.address, l.prefix))
    // What lies on the link first: a gateway may be reachable by such a route only.
    const routes = [...l.routes].sort((a, b) => Number(a.gateway !== undefined) - Number(b.gateway !== undefined))
    for (const r of routes) {
      const done = addRoute(this.name, r.destination, r.prefix, r.gateway)
      if (done < 0 && done !== -errno.EEXIST) throw new SysError(`route to ${r.destination}/${r.prefix}`, done)
    }
  }

  close(): void {
    close(this.#fd)
  }
}
