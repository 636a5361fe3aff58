/**
 * The built-in clients and servers: `node tool.ts VERB ARGS...`, run inside a namespace. One line of JSON is the answer.
 *
 *   serve PORT                          TCP: echoes 64-byte requests, swallows a stream, or sends one; says {"ready":true}
 *   transfer HOST PORT MS FLOWS out|in  a stream as iperf3 would tell it (of several flows the sum)
 *   rr HOST PORT MS                     one connection, request after request: transactions, p50, p99
 *   crr HOST PORT MS                    connect, request, response, close, again
 *   hold HOST PORT N                    opens N connections, says how many, holds them until it is ended
 *   udp-count PORT                      says {"ready":true}, then what came between the first and the last datagram
 *   udp-blast HOST PORT SIZE MS [gso]   as many datagrams as the kernel takes; gso: 40 in each call, cut by UDP_SEGMENT
 *   dns HOST MS SOCKETS                 questions for the bench's names, several sockets
 *   dns-serve ADDRESS                   the upstream: every A question has an answer
 *   offloads IFNAME
 *
 * Theory. Blocking system calls on one thread and nothing between: an event loop would add its own 20 µs to every round trip that is measured.
 * Requests and responses have 64 bytes. All subjects are measured with the same verbs.
 */

import { EPOLLIN, Epoll } from '../sys/epoll.ts'
import { must } from '../sys/errno.ts'
import { close } from '../sys/fd.ts'
import { Scratch } from '../sys/libc.ts'
import { Batch } from '../sys/mmsg.ts'
import {
  AF_INET,
  accept,
  bind,
  connect,
  IPPROTO_TCP,
  IPPROTO_UDP,
  listen,
  MSG_DONTWAIT,
  recv,
  SO_RCVBUF,
  SO_RCVBUFFORCE,
  SO_REUSEADDR,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  SOL_SOCKET,
  send,
  setOption,
  setOptionBytes,
  socket,
  TCP_NODELAY,
  UDP_GRO,
  UDP_SEGMENT,
} from '../sys/socket.ts'
import { dnsBlast, dnsServe } from './dns-tool.ts'
import { offloads } from './offloads.ts'
import { percentile } from './stats.ts'

const REQUEST = 64
const BLOCK = 128 * 1024
/** First byte of a connection: what the client wants. */
const ECHO = 1
const SINK = 2
const SOURCE = 3
const RCVBUF = 4 << 20
/** MSG_WAITFORONE: block for the first datagram only. */
const MSG_WAITFORONE = 0x10000
const GSO_SEGMENTS = 40
/** A connection of `hold` that takes longer is not made. */
const HOLD_S = 2
const SO_SNDTIMEO = 21
/** udp-count ends after so long without a datagram, and gives up waiting for the first. */
const SILENCE_MS = 300
const PATIENCE_MS = 30_000

const say = (v: unknown): void => {
  process.stdout.write(`${JSON.stringify(v)}\n`)
}

/** @param limit seconds that it may take; 0: the kernel's own minutes */
function dial(host: string, port: string, limit = 0): number {
  const fd = must('socket', socket(AF_INET, SOCK_STREAM))
  if (limit > 0)
    setOptionBytes(fd, SOL_SOCKET, SO_SNDTIMEO, new Uint8Array(new BigInt64Array([BigInt(limit), 0n]).buffer))
  must(`connect ${host}:${port}`, connect(fd, { family: 'inet', address: host, port: Number(port) }))
  setOption(fd, IPPROTO_TCP, TCP_NODELAY, 1)
  return fd
}

function serve(port: string): void {
  const listener = must('socket', socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK))
  setOption(listener, SOL_SOCKET, SO_REUSEADDR, 1)
  must('bind', bind(listener, { family: 'inet', address: '0.0.0.0', port: Number(port) }))
  must('listen', listen(listener))
  const ep = new Epoll()
  ep.add(listener, EPOLLIN)
  const memory = new Scratch(BLOCK)
  const modes = new Map<number, number>()
  const end = (fd: number): void => {
    modes.delete(fd)
    close(fd)
  }
  say({ ready: true })
  for (;;) {
    const n = ep.wait(-1)
    for (let i = 0; i < n; i++) {
      const fd = ep.fdOf(i)
      if (fd === listener) {
        for (let c = accept(listener); c >= 0; c = accept(listener)) {
          setOption(c, IPPROTO_TCP, TCP_NODELAY, 1)
          ep.add(c, EPOLLIN)
        }
        continue
      }
      const got = recv(fd, memory.address, BLOCK, MSG_DONTWAIT)
      if (got <= 0) {
        end(fd)
        continue
      }
      let mode = modes.get(fd)
      if (mode === undefined) {
        mode = memory.bytes[0] as number
        modes.set(fd, mode)
      }
      if (mode === ECHO) send(fd, memory.address, got)
      else if (mode === SOURCE) {
        // A child would be fairer to other connections; one transfer runs at a time, with its flows in one client.
        const until = performance.now() + memory.u32(4)
        while (performance.now() < until && send(fd, memory.address, BLOCK) > 0);
        end(fd)
      }
    }
  }
}

function transfer(host: string, port: string, ms: string, flows: string, way: string): void {
  if (way === 'in' && flows !== '1') throw new RangeError('the built-in server sends one flow at a time')
  const memory = new Scratch(BLOCK)
  const fds = Array.from({ length: Number(flows) }, () => dial(host, port))
  memory.bytes[0] = way === 'in' ? SOURCE : SINK
  memory.setI32(4, Number(ms))
  const begin = performance.now()
  let bytes = 0
  if (way === 'in') {
    send(fds[0] as number, memory.address, REQUEST)
    for (let n = 1; n > 0; bytes += n) n = Math.max(0, recv(fds[0] as number, memory.address, BLOCK))
  } else {
    const until = begin + Number(ms)
    for (const fd of fds) bytes += must('send', send(fd, memory.address, BLOCK))
    while (performance.now() < until) for (const fd of fds) bytes += must('send', send(fd, memory.address, BLOCK))
  }
  const seconds = (performance.now() - begin) / 1000
  for (const fd of fds) close(fd)
  say({ bitsPerSecond: (bytes * 8) / seconds, bytes, seconds, retransmits: null })
}

function exchange(fd: number, memory: Scratch): void {
  must('send', send(fd, memory.address, REQUEST))
  for (let got = 0; got < REQUEST; ) {
    const n = must('recv', recv(fd, memory.address, REQUEST - got))
    if (n === 0) throw new Error('the server closed')
    got += n
  }
  memory.bytes[0] = ECHO
}

/** What is not counted yet, in ms: this program is compiled while it runs. */
const WARM_MS = 100

/** Run `once` again and again for `ms`; how many and how long each took. */
function repeat(ms: number, once: () => void): void {
  for (const until = performance.now() + WARM_MS; performance.now() < until; ) once()
  const times: number[] = []
  const begin = performance.now()
  let last = begin
  while (last - begin < ms) {
    once()
    const now = performance.now()
    times.push((now - last) * 1000)
    last = now
  }
  const sorted = Float64Array.from(times).sort()
  say({
    perSecond: (times.length * 1000) / (last - begin),
    count: times.length,
    p50: percentile(sorted, 0.5),
    p99: percentile(sorted, 0.99),
  })
}

function udpCount(port: string): void {
  const fd = must('socket', socket(AF_INET, SOCK_DGRAM))
  if (setOption(fd, SOL_SOCKET, SO_RCVBUFFORCE, RCVBUF) < 0) setOption(fd, SOL_SOCKET, SO_RCVBUF, RCVBUF)
  setOption(fd, IPPROTO_UDP, UDP_GRO, 1)
  must('bind', bind(fd, { family: 'inet', address: '0.0.0.0', port: Number(port) }))
  const batch = new Batch(64, 65536)
  const ep = new Epoll(1)
  ep.add(fd, EPOLLIN)
  say({ ready: true })
  let bytes = 0
  let first = 0
  let last = 0
  while (ep.wait(first === 0 ? PATIENCE_MS : SILENCE_MS) > 0) {
    const n = batch.receive(fd, MSG_WAITFORONE | MSG_DONTWAIT)
    last = performance.now()
    if (first === 0) first = last
    for (let i = 0; i < n; i++) bytes += batch.lengthOf(i)
  }
  say({ bytes, seconds: (last - first) / 1000 })
}

function udpBlast(host: string, port: string, size: string, ms: string, gso?: string): void {
  const fd = must('socket', socket(AF_INET, SOCK_DGRAM))
  must('connect', connect(fd, { family: 'inet', address: host, port: Number(port) }))
  if (gso !== undefined) must('UDP_SEGMENT', setOption(fd, IPPROTO_UDP, UDP_SEGMENT, Number(size)))
  const each = gso === undefined ? 1 : GSO_SEGMENTS
  const batch = new Batch(gso === undefined ? 64 : 8, Number(size) * each)
  let sent = 0
  const begin = performance.now()
  const until = begin + Number(ms)
  while (performance.now() < until) {
    const n = batch.send(fd)
    if (n > 0) sent += n
  }
  say({ sent: sent * each, seconds: (performance.now() - begin) / 1000 })
  close(fd)
}

const verbs: Record<string, (...args: string[]) => void> = {
  serve: (port) => serve(port as string),
  transfer: (host, port, ms, flows, way) => transfer(host!, port!, ms!, flows!, way!),
  rr(host, port, ms) {
    const memory = new Scratch(REQUEST)
    memory.bytes[0] = ECHO
    const fd = dial(host!, port!)
    repeat(Number(ms), () => exchange(fd, memory))
  },
  crr(host, port, ms) {
    const memory = new Scratch(REQUEST)
    memory.bytes[0] = ECHO
    repeat(Number(ms), () => {
      const fd = dial(host!, port!)
      exchange(fd, memory)
      close(fd)
    })
  },
  hold(host, port, n) {
    const fds: number[] = []
    try {
      for (let i = 0; i < Number(n); i++) fds.push(dial(host!, port!, HOLD_S))
    } catch {
      // A limit was reached; how many there are is the answer.
    }
    say({ held: fds.length })
    setInterval(() => {}, 1 << 30)
  },
  'udp-count': (port) => udpCount(port!),
  'udp-blast': (host, port, size, ms, gso) => udpBlast(host!, port!, size!, ms!, gso),
  dns: (host, ms, sockets) => say(dnsBlast(host!, Number(ms), Number(sockets))),
  'dns-serve': (address) => dnsServe(address!, () => say({ ready: true })),
  offloads: (ifname) => say(offloads(ifname!)),
}

if (import.meta.main) {
  const [verb, ...args] = process.argv.slice(2)
  const run = verbs[verb as string]
  if (run === undefined) throw new RangeError(`no verb ${verb}`)
  run(...args)
}
