/**
 * What the kit runs inside a guest: small clients and servers with nothing but Node. `node probe.ts VERB ARGS...`; one line of JSON as the answer.
 *
 *   tcp-serve PORT [ADDRESS]    says {"ready":true}; to each connection's whole stream it answers {"bytes","sha256"}
 *   tcp-send HOST PORT BYTES    sends, half-closes, and says what came back beside what was sent
 *   udp-echo PORT [ADDRESS]     says {"ready":true}; answers each datagram with itself and who sent it
 *   udp-ask HOST PORT           asks up to five times, a second apart
 *   dns SERVER NAME TYPE        the answers' data
 * Never does: going on for longer than its time.
 */
import { createHash } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { connect, createServer } from 'node:net'
import * as dnsPacket from 'dns-packet'

const LIFE_MS = 120_000
const ANSWER_MS = 15_000

const say = (v: unknown): void => {
  process.stdout.write(`${JSON.stringify(v)}\n`)
}
const finish = (v: unknown): void => {
  say(v)
  process.exit(0)
}

/** Bytes that no two offsets share by accident. */
export function pattern(bytes: number): Buffer {
  const b = Buffer.alloc(bytes)
  let x = 0x9e3779b9
  for (let i = 0; i < bytes; i++) {
    x = (Math.imul(x, 1664525) + 1013904223) | 0
    b[i] = x >>> 24
  }
  return b
}

const kind = (address: string): 'udp4' | 'udp6' => (address.includes(':') ? 'udp6' : 'udp4')

const verbs: Record<string, (...argv: string[]) => void> = {
  'tcp-serve'(port, address = '0.0.0.0') {
    createServer({ allowHalfOpen: true }, (s) => {
      const hash = createHash('sha256')
      let bytes = 0
      s.on('error', () => {})
      s.on('data', (d: Buffer) => {
        hash.update(d)
        bytes += d.length
      })
      s.on('end', () => s.end(JSON.stringify({ bytes, sha256: hash.digest('hex'), from: s.remoteAddress })))
    }).listen(Number(port), address, () => say({ ready: true }))
    setTimeout(() => process.exit(1), LIFE_MS)
  },
  'tcp-send'(host, port, bytes) {
    const payload = pattern(Number(bytes))
    const s = connect(Number(port), host)
    let answer = ''
    s.on('error', (e: NodeJS.ErrnoException) => finish({ error: e.code }))
    s.on('data', (d: Buffer) => {
      answer += d
    })
    s.on('end', () =>
      finish({
        sent: { bytes: payload.length, sha256: createHash('sha256').update(payload).digest('hex') },
        got: JSON.parse(answer || '{}'),
      }),
    )
    s.end(payload)
    setTimeout(() => finish({ error: 'ETIMEDOUT' }), ANSWER_MS)
  },
  'udp-echo'(port, address = '0.0.0.0') {
    const s = createSocket(kind(address))
    s.on('message', (m, from) =>
      s.send(JSON.stringify({ echo: m.toString(), from: from.address }), from.port, from.address),
    )
    s.bind(Number(port), address, () => say({ ready: true }))
    setTimeout(() => process.exit(1), LIFE_MS)
  },
  'udp-ask'(host, port) {
    const s = createSocket(kind(host as string))
    let left = 5
    const ask = (): void => {
      if (left-- === 0) finish({ error: 'ETIMEDOUT' })
      s.send('hello', Number(port), host, (e) => e && finish({ error: (e as NodeJS.ErrnoException).code }))
      setTimeout(ask, 1000)
    }
    s.on('error', (e: NodeJS.ErrnoException) => finish({ error: e.code }))
    s.on('message', (m) => finish(JSON.parse(m.toString())))
    ask()
  },
  dns(server, name, type) {
    const s = createSocket(kind(server as string))
    const query = dnsPacket.encode({
      type: 'query',
      id: 4711,
      flags: dnsPacket.RECURSION_DESIRED,
      questions: [{ type: type as 'A', name: name as string }],
    })
    let left = 5
    const ask = (): void => {
      if (left-- === 0) finish({ error: 'ETIMEDOUT' })
      s.send(query, 53, server, (e) => e && finish({ error: (e as NodeJS.ErrnoException).code }))
      setTimeout(ask, 1000)
    }
    s.on('error', (e: NodeJS.ErrnoException) => finish({ error: e.code }))
    s.on('message', (m) => {
      const p = dnsPacket.decode(m) as dnsPacket.DecodedPacket & { rcode: string }
      finish({ rcode: p.rcode, answers: (p.answers ?? []).map((a) => ('data' in a ? a.data : null)) })
    })
    ask()
  },
}

if (import.meta.main) {
  const [verb, ...argv] = process.argv.slice(2)
  verbs[verb as string]!(...argv)
}
