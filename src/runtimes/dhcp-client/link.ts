/**
 * A link as a DHCP client sees it: frames in and out of one device of this network namespace, and its configuration.
 *
 * Frames go through a packet socket, so that neither a missing address nor the VM's own firewall is in the way. The client's ports are held
 * meanwhile, though nothing is read from them: what a server sends to a port that nobody has, the VM's kernel answers with an ICMP error.
 * Throws SysError when the device is not there or may not be configured.
 */
import { errno, must, SysError } from '../../sys/errno.ts'
import { close } from '../../sys/fd.ts'
import { addressOf, declare, result } from '../../sys/libc.ts'
import { giveAddress6, takeAddress6 } from '../../sys/netaddr.ts'
import { addRoute, linkIndex, linkMac, linkMtu, setLinkAddress, setLinkMtu, setLinkUp } from '../../sys/netdev.ts'
import { bindPacket } from '../../sys/packet.ts'
import {
  AF_INET,
  AF_INET6,
  AF_PACKET,
  addressBytes,
  bind,
  recv,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  SOCK_RAW,
  type SocketAddress,
  send,
  setOption,
  socket,
} from '../../sys/socket.ts'
import { buildProbe } from './frame6.ts'
import { prepare6 } from './ipv6.ts'
import type { Lease } from './lease.ts'

const c = {
  poll: declare<(fds: number, n: number, timeoutMs: number) => number>('int poll(uintptr_t, unsigned long, int)'),
}
const ETH_P_IP = 0x0800
const ETH_P_IPV6 = 0x86dd
const SOL_PACKET = 263
const PACKET_IGNORE_OUTGOING = 23
const POLLIN = 1
/** RFC 2131 §4.1, RFC 8415 §7.2. */
const CLIENT4: SocketAddress = { family: 'inet', address: '0.0.0.0', port: 68 }
const CLIENT6: SocketAddress = { family: 'inet6', address: '::', port: 546 }

export class Link {
  readonly name: string
  readonly mac: string
  /** For IPv4, and for IPv6 when it is wanted. */
  readonly #fds: readonly number[]
  readonly #held: readonly number[]
  readonly #buffer = Buffer.alloc(65536)
  readonly #address = addressOf(this.#buffer)
  /** struct pollfd, two words each. */
  readonly #pollfd = new Int32Array(4)
  readonly #poll = addressOf(new Uint8Array(this.#pollfd.buffer))

  constructor(name: string, ipv6 = false) {
    this.name = name
    const index = must(`the device ${name}`, linkIndex(name))
    const mac = linkMac(name)
    if (typeof mac === 'number') throw new SysError(`the device ${name}`, mac)
    this.mac = [...mac].map((x) => x.toString(16).padStart(2, '0')).join(':')
    must(`${name} up`, setLinkUp(name))
    this.#fds = (ipv6 ? [ETH_P_IP, ETH_P_IPV6] : [ETH_P_IP]).map((etherType) => {
      const fd = must('packet socket', socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0))
      setOption(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
      must(`packet socket on ${name}`, bindPacket(fd, index, etherType))
      return fd
    })
    this.#held = (ipv6 ? [CLIENT4, CLIENT6] : [CLIENT4]).map(hold)
    this.#fds.forEach((fd, i) => {
      this.#pollfd[2 * i] = fd
      this.#pollfd[2 * i + 1] = POLLIN
    })
    if (ipv6) prepare6(name)
  }

  /** Lost when the device has no carrier yet: retransmission is the client's. */
  send(frame: Buffer): void {
    send(this.#fds[0]!, addressOf(frame), frame.length)
  }

  /** Wait for a frame, at most so long; undefined when there is none. The frame is valid until the next call. */
  receive(timeoutMs: number): Buffer | undefined {
    const there = this.#take()
    if (there !== undefined || timeoutMs <= 0) return there
    result(c.poll(this.#poll, this.#fds.length, Math.ceil(timeoutMs)))
    return this.#take()
  }

  #take(): Buffer | undefined {
    for (const fd of this.#fds) {
      const n = recv(fd, this.#address, this.#buffer.length)
      if (n > 0) return this.#buffer.subarray(0, n)
    }
    return undefined
  }

  /** Give the link what a lease grants. What is so already is left alone, and flows with it. */
  configure(l: Lease, before: Lease | undefined, mtu: number | undefined): void {
    this.setMtu(l.mtu ?? mtu)
    if (before === undefined || before.address !== l.address || before.prefix !== l.prefix)
      must(`address ${l.address}`, setLinkAddress(this.name, l.address, l.prefix))
    // What lies on the link first: a gateway may be reachable by such a route only.
    const routes = [...l.routes].sort((a, b) => Number(a.gateway !== undefined) - Number(b.gateway !== undefined))
    for (const r of routes) {
      const done = addRoute(this.name, r.destination, r.prefix, r.gateway)
      if (done < 0 && done !== -errno.EEXIST) throw new SysError(`route to ${r.destination}/${r.prefix}`, done)
    }
  }

  setMtu(mtu: number | undefined): void {
    if (mtu !== undefined && mtu !== linkMtu(this.name)) must(`MTU ${mtu}`, setLinkMtu(this.name, mtu))
  }

  /** The link's IPv6 address, beside those that SLAAC makes. */
  configure6(address: string, prefix: number, before: string | undefined): void {
    // Nobody else has it, and the answer is not waited for; but the network knows by the question that the address is in use.
    this.send(buildProbe(this.mac, addressBytes(address)))
    must(`address ${address}`, giveAddress6(this.name, address, prefix))
    if (before !== undefined && before !== address) takeAddress6(this.name, before, prefix)
  }

  close(): void {
    for (const fd of [...this.#fds, ...this.#held]) if (fd >= 0) close(fd)
  }
}

function hold(at: SocketAddress): number {
  const fd = socket(at.family === 'inet' ? AF_INET : AF_INET6, SOCK_DGRAM)
  // Somebody in the VM may have it already: as good.
  if (fd >= 0) bind(fd, at)
  return fd
}
