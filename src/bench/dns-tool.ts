/**
 * Both ends of the DNS measure when dnsperf is not there, and the upstream in any case. RFC 1035 §4.
 *
 * The names are `nameN.bench.example`, N from 0 to NAMES − 1: enough that a cache must look up, few enough that every cache holds them.
 */
import { createSocket } from 'node:dgram'
import { EPOLLIN, Epoll } from '../sys/epoll.ts'
import { must } from '../sys/errno.ts'
import { close } from '../sys/fd.ts'
import { Scratch } from '../sys/libc.ts'
import { AF_INET, connect, MSG_DONTWAIT, recv, SOCK_DGRAM, send, socket } from '../sys/socket.ts'

export const NAMES = 100
const HEADER = 12
const FLAGS_RD = 0x0100
const TTL_S = 3600
/** Questions under way on each socket. */
const PIPELINE = 16
/** A question without an answer is asked again. */
const LOST_MS = 200

export const nameOf = (n: number): string => `name${n}.bench.example`

/** A question for the A record of a name. */
export function question(id: number, name: string): Buffer {
  const labels = name.split('.').map((l) => Buffer.concat([Buffer.from([l.length]), Buffer.from(l)]))
  const head = Buffer.alloc(HEADER)
  head.writeUInt16BE(id, 0)
  head.writeUInt16BE(FLAGS_RD, 2)
  head.writeUInt16BE(1, 4)
  return Buffer.concat([head, ...labels, Buffer.from([0, 0, 1, 0, 1])])
}

/** The answer to a question: its own bytes, and one A record for every A question; anything else has no data. */
export function answer(q: Buffer): Buffer {
  let end = HEADER
  while (q[end] !== 0 && end < q.length) end += (q[end] as number) + 1
  end += 5
  const known = q.readUInt16BE(end - 4) === 1
  const out = Buffer.alloc(end + (known ? 16 : 0))
  q.copy(out, 0, 0, end)
  out.writeUInt16BE(0x8180, 2)
  out.writeUInt16BE(known ? 1 : 0, 6)
  out.writeUInt32BE(0, 8)
  if (known) {
    out.writeUInt16BE(0xc000 | HEADER, end)
    out.writeUInt16BE(1, end + 2)
    out.writeUInt16BE(1, end + 4)
    out.writeUInt32BE(TTL_S, end + 6)
    out.writeUInt16BE(4, end + 10)
    out.set([203, 0, 113, 7], end + 12)
  }
  return out
}

export function dnsServe(address: string, ready: () => void): void {
  const s = createSocket('udp4')
  s.on('message', (m, from) => s.send(answer(m), from.port, from.address))
  s.bind(53, address, ready)
}

/** Ask for `ms`, with `sockets` clients that each keep a few questions under way. */
export function dnsBlast(
  host: string,
  ms: number,
  sockets: number,
): { perSecond: number; sent: number; completed: number } {
  const ep = new Epoll()
  const memory = new Scratch(1024)
  const questions = Array.from({ length: NAMES }, (_, n) => question(n, nameOf(n)))
  let next = 0
  let sent = 0
  let completed = 0
  const ask = (fd: number): void => {
    const q = questions[next++ % NAMES] as Buffer
    memory.bytes.set(q)
    if (send(fd, memory.address, q.length) > 0) sent++
  }
  const fds = Array.from({ length: sockets }, () => {
    const fd = must('socket', socket(AF_INET, SOCK_DGRAM))
    must('connect', connect(fd, { family: 'inet', address: host, port: 53 }))
    ep.add(fd, EPOLLIN)
    for (let i = 0; i < PIPELINE; i++) ask(fd)
    return fd
  })
  const begin = performance.now()
  while (performance.now() - begin < ms) {
    const n = ep.wait(LOST_MS)
    if (n === 0) for (const fd of fds) ask(fd)
    for (let i = 0; i < n; i++)
      while (recv(ep.fdOf(i), memory.address, 512, MSG_DONTWAIT) > 0) {
        completed++
        ask(ep.fdOf(i))
      }
  }
  const seconds = (performance.now() - begin) / 1000
  for (const fd of fds) close(fd)
  return { perSecond: completed / seconds, sent, completed }
}
