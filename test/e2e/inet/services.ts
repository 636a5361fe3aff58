/**
 * The laboratory's internet: a name server on 8.8.8.8, 1.1.1.1 and 2001:db8:8888::8, and what lives at example.com; all of it in both families.
 *
 *   DNS   53  UDP and TCP. example.com A, MX, TXT; no AAAA (NODATA). google.com A. v6.example.com AAAA, no A. dual.example.com both. big.example.com TXT of 3 kB (truncated over UDP).
 *             odd.example.com of type 65400 (a type nobody knows). Anything else: NXDOMAIN with SOA.
 *   HTTP  80  / says hello and whom it saw · /bytes/N N deterministic bytes · POST /hash answers the SHA-256 of the body
 *   TCP    7  echo that half-closes · 9 discards · 13 speaks first, then waits for the client's FIN and answers it
 *   UDP    7  echo
 *
 * Commands come as JSON lines on stdin, each is answered by a line: {"dns":"normal"|"silent"|"nxdomain"|"servfail"}, {"delay":ms},
 * {"queries":true} (how often was each name asked, then forgets).
 */
import { createHash } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { createServer as httpServer } from 'node:http'
import { createServer } from 'node:net'
import { createInterface } from 'node:readline'
import packet, { type Answer, type Packet } from 'dns-packet'
import { block } from './blocks.ts'

const EXAMPLE = '93.184.216.34'
const EXAMPLE6 = '2001:db8::34'
const SERVERS = ['8.8.8.8', '1.1.1.1', '2001:db8:8888::8']
const UDP_MAX = 512
const RCODE = { NOERROR: 0, SERVFAIL: 2, NXDOMAIN: 3 }

let mode = 'normal'
let delay = 0
let asked: Record<string, number> = {}

const soa: Answer = {
  type: 'SOA',
  name: 'example.com',
  ttl: 30,
  data: {
    mname: 'ns.example.com',
    rname: 'root.example.com',
    serial: 1,
    refresh: 60,
    retry: 60,
    expire: 60,
    minimum: 30,
  },
}
const zone: Record<string, Answer[]> = {
  'example.com': [
    { type: 'A', name: 'example.com', ttl: 300, data: EXAMPLE },
    { type: 'MX', name: 'example.com', ttl: 300, data: { preference: 10, exchange: 'mail.example.com' } },
    { type: 'TXT', name: 'example.com', ttl: 300, data: ['v=spf1 -all'] },
  ],
  'google.com': [{ type: 'A', name: 'google.com', ttl: 300, data: EXAMPLE }],
  'www.example.com': [{ type: 'CNAME', name: 'www.example.com', ttl: 300, data: 'example.com' }],
  'short.example.com': [{ type: 'A', name: 'short.example.com', ttl: 1, data: EXAMPLE }],
  'v6.example.com': [{ type: 'AAAA', name: 'v6.example.com', ttl: 300, data: EXAMPLE6 }],
  'dual.example.com': [
    { type: 'A', name: 'dual.example.com', ttl: 300, data: EXAMPLE },
    { type: 'AAAA', name: 'dual.example.com', ttl: 300, data: EXAMPLE6 },
  ],
  'big.example.com': Array.from({ length: 15 }, (_, i) => ({
    type: 'TXT' as const,
    name: 'big.example.com',
    ttl: 300,
    data: [`${i}`.padStart(200, 'x')],
  })),
  'odd.example.com': [],
}

/** RDATA of the type that nobody knows, byte by byte. */
const ODD_TYPE = 65400
const odd = Buffer.from('00ff10c00c01fe', 'hex')

function oddAnswer(query: Buffer): Buffer {
  const end = query.indexOf(0, 12) + 5
  const head = Buffer.from(query.subarray(0, end))
  head.writeUInt16BE(0x8180, 2)
  head.writeUInt16BE(1, 6)
  head.writeUInt16BE(0, 8)
  head.writeUInt16BE(0, 10)
  const rr = Buffer.alloc(12)
  rr.writeUInt16BE(0xc00c, 0)
  rr.writeUInt16BE(ODD_TYPE, 2)
  rr.writeUInt16BE(1, 4)
  rr.writeUInt32BE(60, 6)
  rr.writeUInt16BE(odd.length, 10)
  return Buffer.concat([head, rr, odd])
}

function answer(bytes: Buffer, max: number): Buffer | undefined {
  const query = packet.decode(bytes)
  const question = query.questions?.[0]
  if (!question) return undefined
  const name = question.name.toLowerCase()
  asked[`${name} ${question.type}`] = (asked[`${name} ${question.type}`] ?? 0) + 1
  if (mode === 'silent') return undefined
  const reply = (rcode: number, more: Partial<Packet>): Packet => ({
    type: 'response',
    id: query.id,
    flags: packet.RECURSION_DESIRED | packet.RECURSION_AVAILABLE | rcode,
    questions: [question],
    ...more,
  })
  if (mode === 'servfail') return packet.encode(reply(RCODE.SERVFAIL, {}))
  const type = bytes.readUInt16BE(bytes.indexOf(0, 12) + 1)
  if (name === 'odd.example.com' && type === ODD_TYPE) return oddAnswer(bytes)
  const rows = mode === 'nxdomain' ? undefined : zone[name]
  if (!rows) return packet.encode(reply(RCODE.NXDOMAIN, { authorities: [soa] }))
  const cname = rows.find((r) => r.type === 'CNAME')
  const found = cname
    ? [cname, ...(zone['example.com'] as Answer[]).filter((r) => r.type === question.type)]
    : rows.filter((r) => r.type === question.type)
  const opt = query.additionals?.find((a) => a.type === 'OPT') as { udpPayloadSize?: number } | undefined
  const limit = max === UDP_MAX ? Math.max(UDP_MAX, opt?.udpPayloadSize ?? 0) : max
  const additionals: Answer[] = opt
    ? [
        {
          type: 'OPT',
          name: '.',
          udpPayloadSize: 1232,
          extendedRcode: 0,
          ednsVersion: 0,
          flags: 0,
          flag_do: false,
          options: [],
        },
      ]
    : []
  const full: Buffer = packet.encode(
    found.length > 0 ? reply(0, { answers: found, additionals }) : reply(0, { authorities: [soa], additionals }),
  )
  if (full.length <= limit) return full
  const cut = reply(0, { answers: [], additionals })
  cut.flags = (cut.flags ?? 0) | packet.TRUNCATED_RESPONSE
  return packet.encode(cut)
}

const later = (f: () => void) => (delay > 0 ? setTimeout(f, delay) : f())
const ready: Promise<void>[] = []
const up = (listen: (done: () => void) => void) => ready.push(new Promise((resolve) => listen(resolve)))

for (const address of SERVERS) {
  const udp = createSocket(address.includes(':') ? 'udp6' : 'udp4')
  udp.on('message', (m, from) => {
    const a = answer(m, UDP_MAX)
    if (a) later(() => udp.send(a, from.port, from.address))
  })
  up((done) => udp.bind(53, address, done))
  const tcp = createServer((s) => {
    let held = Buffer.alloc(0)
    s.on('error', () => {})
    s.on('data', (d) => {
      held = Buffer.concat([held, d as Buffer])
      while (held.length >= 2 && held.length >= 2 + held.readUInt16BE(0)) {
        const size = held.readUInt16BE(0)
        const a = answer(held.subarray(2, 2 + size), 65535)
        held = held.subarray(2 + size)
        if (!a) continue
        const length = Buffer.alloc(2)
        length.writeUInt16BE(a.length)
        later(() => s.write(Buffer.concat([length, a])))
      }
    })
  })
  up((done) => tcp.listen(53, address, done))
}

const web = httpServer((req, res) => {
  const bytes = /^\/bytes\/(\d+)$/.exec(req.url ?? '')
  if (bytes) {
    let left = Number(bytes[1])
    res.writeHead(200, { 'content-length': left })
    const more = () => {
      while (left > 0) {
        const piece = left < block.length ? block.subarray(0, left) : block
        left -= piece.length
        if (!res.write(piece)) return res.once('drain', more)
      }
      res.end()
    }
    more()
    return
  }
  if (req.url === '/hash') {
    const hash = createHash('sha256')
    req.on('data', (d) => hash.update(d))
    req.on('end', () => res.end(`${hash.digest('hex')}\n`))
    return
  }
  res.end(`hello ${req.socket.remoteAddress?.replace('::ffff:', '')}\n`)
})
up((done) => web.listen(80, '::', done))
up((done) =>
  createServer({ allowHalfOpen: true }, (s) => {
    s.on('error', () => {})
    s.pipe(s)
  }).listen(7, '::', done),
)
up((done) =>
  createServer((s) => {
    s.on('error', () => {})
    s.resume()
  }).listen(9, '::', done),
)
up((done) =>
  createServer({ allowHalfOpen: true }, (s) => {
    let n = 0
    s.on('error', () => {})
    s.write('first\n')
    s.on('data', (d) => {
      n += d.length
    })
    s.on('end', () => s.end(`got ${n}\n`))
  }).listen(13, '::', done),
)
for (const address of [EXAMPLE, '203.0.113.2', EXAMPLE6, '2001:db8:113::2']) {
  const echo = createSocket(address.includes(':') ? 'udp6' : 'udp4')
  echo.on('message', (m, from) => echo.send(m, from.port, from.address))
  up((done) => echo.bind(7, address, done))
}

createInterface(process.stdin).on('line', (line) => {
  const c = JSON.parse(line) as { dns?: string; delay?: number; queries?: boolean }
  if (c.dns !== undefined) mode = c.dns
  if (c.delay !== undefined) delay = c.delay
  console.log(JSON.stringify(c.queries ? asked : 'ok'))
  if (c.queries) asked = {}
})
process.stdin.on('end', () => process.exit(0))
await Promise.all(ready)
console.log('"ready"')
