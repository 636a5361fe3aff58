/**
 * DNS messages by offset (RFC 1035 §4.1): what the proxy must know of a message, and nothing more.
 *
 * Owns: reading a query's head, question and EDNS record (RFC 6891); walking an answer's records; writing short answers
 * (errors, truncated ones). Records' data is never looked into, except an SOA's minimum: every type passes as it came.
 * Never does: following compression pointers, so that none can loop. Names in a query's question must not be compressed.
 * Invariants: no input throws, and every walk ends at the message's end.
 */
import { be16, be32, put16, put32 } from '../wire/bytes.ts'

export const HEADER = 12
/** A longer query is refused: a name has 255 bytes at most, and EDNS options of a client are small. */
export const MAX_QUERY = 4096
/** What a client without EDNS takes by UDP (RFC 1035 §4.2.1). */
export const CLASSIC_SIZE = 512

export const FLAG = { QR: 0x8000, AA: 0x0400, TC: 0x0200, RD: 0x0100, RA: 0x0080, AD: 0x0020, CD: 0x0010 } as const
const OPCODE = 0x7800

export const RCODE = { NOERROR: 0, FORMERR: 1, SERVFAIL: 2, NXDOMAIN: 3, NOTIMP: 4, REFUSED: 5 } as const
export const TYPE = {
  A: 1,
  NS: 2,
  CNAME: 5,
  SOA: 6,
  PTR: 12,
  AAAA: 28,
  OPT: 41,
  IXFR: 251,
  AXFR: 252,
  ANY: 255,
} as const
export const CLASS_IN = 1

/** Extended errors (RFC 8914 §4). */
export const EDE = { OTHER: 0, BLOCKED: 15, NO_REACHABLE_AUTHORITY: 22, NETWORK_ERROR: 23 } as const

/** EDNS options that do not change the answer: cookie, keepalive, padding. */
const HARMLESS: readonly number[] = [10, 11, 12]
const EDNS_DO = 0x8000
/** What this proxy takes by UDP, as it says in EDNS records of its own (DNS flag day 2020). */
const OWN_SIZE = 1232

/** Lower case of ASCII letters; everything else, length bytes (at most 63) among it, is itself. */
const LOWER = Uint8Array.from({ length: 256 }, (_, c) => (c >= 0x41 && c <= 0x5a ? c + 32 : c))

/** A query in place: offsets are absolute in `bytes`. One object is filled again and again. */
export class Query {
  bytes: Uint8Array = new Uint8Array(0)
  off = 0
  len = 0
  id = 0
  flags = 0
  /** First byte behind the question. */
  end = 0
  type = 0
  class = 0
  /** The client speaks EDNS; its UDP size; its DO bit. */
  edns = false
  size = CLASSIC_SIZE
  dnssec = false
  /** An answer from the cache, or to somebody else, would do: nothing in it asks for more than question and flags say. */
  plain = true
  /** Of the question in lower case and the flags that change an answer, under the cache's seed. */
  hash = 0

  /** A copy that outlives the bytes it was read from. */
  keep(): Query {
    const k = Object.assign(new Query(), this)
    k.bytes = this.bytes.slice(this.off, this.off + this.len)
    k.off = 0
    k.end = this.end - this.off
    return k
  }

  /** RD, AD, CD and DO: a different one of these is a different question. */
  get variant(): number {
    return (this.flags & (FLAG.RD | FLAG.AD | FLAG.CD)) | (this.dnssec ? 1 : 0)
  }
}

/** What parseQuery answers beside an RCODE: no answer is due (an answer itself, or too short to have an id). */
export const IGNORE = -1

/** Read a query. 0 or an RCODE to answer with; with anything but 0 `q.end` is HEADER when the question cannot be echoed. */
export function parseQuery(q: Query, bytes: Uint8Array, off: number, len: number, seed: number): number {
  if (len < HEADER) return IGNORE
  q.bytes = bytes
  q.off = off
  q.len = len
  q.id = be16(bytes, off)
  q.flags = be16(bytes, off + 2)
  q.end = off + HEADER
  q.type = q.class = 0
  q.edns = q.dnssec = false
  q.size = CLASSIC_SIZE
  q.plain = true
  if ((q.flags & FLAG.QR) !== 0) return IGNORE
  if ((q.flags & OPCODE) !== 0) return RCODE.NOTIMP
  const end = off + len
  const additional = be16(bytes, off + 10)
  if (len > MAX_QUERY || be16(bytes, off + 4) !== 1 || be32(bytes, off + 6) !== 0 || additional > 3)
    return RCODE.FORMERR
  let hash = seed
  let o = off + HEADER
  for (;;) {
    if (o >= end) return RCODE.FORMERR
    const n = bytes[o]
    if (n > 63 || o - off - HEADER + n + 1 > 255) return RCODE.FORMERR
    hash = Math.imul(hash ^ n, 0x01000193)
    o++
    if (n === 0) break
    const stop = o + n
    if (stop > end) return RCODE.FORMERR
    for (; o < stop; o++) hash = Math.imul(hash ^ LOWER[bytes[o]], 0x01000193)
  }
  if (o + 4 > end) return RCODE.FORMERR
  q.type = be16(bytes, o)
  q.class = be16(bytes, o + 2)
  q.end = o += 4
  for (let i = 0; i < additional; i++) {
    const name = skipName(bytes, o, end)
    if (name < 0 || name + 10 > end) return RCODE.FORMERR
    const next = name + 10 + be16(bytes, name + 8)
    if (next > end) return RCODE.FORMERR
    if (be16(bytes, name) === TYPE.OPT && bytes[o] === 0 && !q.edns) readOpt(q, name, next)
    else q.plain = false
    o = next
  }
  hash = Math.imul(hash ^ q.type, 0x01000193)
  hash = Math.imul(hash ^ q.class ^ (q.variant << 16), 0x01000193)
  // 30 bits: a small integer to V8.
  q.hash = ((hash >>> 15) ^ hash) & 0x3fffffff
  return 0
}

/** `o`: the OPT record behind its name; `end`: behind its data. */
function readOpt(q: Query, o: number, end: number): void {
  q.edns = true
  q.size = Math.max(CLASSIC_SIZE, be16(q.bytes, o + 2))
  q.dnssec = (be16(q.bytes, o + 6) & EDNS_DO) !== 0
  // Another version is upstream's to refuse.
  if (be16(q.bytes, o + 4) !== 0) q.plain = false
  for (o += 10; o + 4 <= end; o += 4 + be16(q.bytes, o + 2)) if (!HARMLESS.includes(be16(q.bytes, o))) q.plain = false
}

/** The offset behind the name at `o`, or −1 when it runs past `end`. */
export function skipName(b: Uint8Array, o: number, end: number): number {
  while (o < end) {
    const n = b[o]
    if (n === 0) return o + 1
    if (n >= 0xc0) return o + 2 <= end ? o + 2 : -1
    if (n > 63) return -1
    o += n + 1
  }
  return -1
}

/** Two questions (or names) of `len` bytes, equal but for the case of letters. */
export function sameName(a: Uint8Array, at: number, b: Uint8Array, bt: number, len: number): boolean {
  for (let i = 0; i < len; i++) if (LOWER[a[at + i]] !== LOWER[b[bt + i]]) return false
  return true
}

/**
 * The question's name in lower case without a final dot; bytes that are no host name's characters are escaped as in zone files, by number (RFC 1035
 * §5.1), so that each dot of the text parts two labels.
 */
export function nameText(q: Query): string {
  let text = ''
  let o = q.off + HEADER
  for (let n = q.bytes[o]; n !== 0; n = q.bytes[o]) {
    if (text !== '') text += '.'
    for (let i = o + 1; i <= o + n; i++) {
      const c = LOWER[q.bytes[i]]
      const plain = c > 0x20 && c < 0x7f && c !== 0x2e && c !== 0x5c
      text += plain ? String.fromCharCode(c) : `\\${String(c).padStart(3, '0')}`
    }
    o += n + 1
  }
  return text
}

/** What a walk over an answer's records found. One object is filled again and again. */
export class Answer {
  rcode = 0
  truncated = false
  /** It says that there is nothing: no such name, or nothing of the type, aliases on the way there aside (RFC 2308 §2.1, 2.2). */
  negative = false
  /** The least TTL of all records, by the rules of RFC 2181 §8; of a negative answer no more than RFC 2308 §5's. 0: not to be kept. */
  ttl = 0
  /** Offsets, from the message's begin, of the TTLs. */
  ttls: number[] = []
  /** Length without the OPT record, or the whole length when there is none. */
  bare = 0
  hasOpt = false
}

/**
 * Walk the records of the answer `b[0, len)` whose question ends at `end`. False when it is not a well-formed message, or one that
 * cannot be kept (an OPT record that is not the last one, a signature over the whole).
 */
export function scanAnswer(a: Answer, b: Uint8Array, len: number, end: number): boolean {
  const flags = be16(b, 2)
  a.rcode = flags & 15
  a.truncated = (flags & FLAG.TC) !== 0
  a.ttls.length = 0
  a.hasOpt = false
  a.bare = len
  const answers = be16(b, 6)
  const authority = be16(b, 8)
  const total = answers + authority + be16(b, 10)
  const asked = be16(b, end - 4)
  let found = false
  let least = Infinity
  let nothing = 0
  let o = end
  for (let i = 0; i < total; i++) {
    const start = o
    const name = skipName(b, o, len)
    if (name < 0 || name + 10 > len) return false
    const type = be16(b, name)
    o = name + 10 + be16(b, name + 8)
    if (o > len) return false
    if (type === TYPE.OPT) {
      // The upper bits of the response code are here; such an answer is an error about EDNS itself.
      if (i !== total - 1 || b[name + 4] !== 0) return false
      a.hasOpt = true
      a.bare = start
      continue
    }
    if (be16(b, name + 2) === TYPE.ANY) return false
    const ttl = Math.max(0, be32(b, name + 4))
    a.ttls.push(name + 4)
    least = Math.min(least, ttl)
    if (i < answers && (type === asked || asked === TYPE.ANY)) found = true
    if (type === TYPE.SOA && i >= answers && i < answers + authority && o - name - 10 >= 22)
      nothing = Math.min(ttl, Math.max(0, be32(b, o - 4)))
  }
  if (!a.hasOpt) a.bare = o
  a.negative = a.rcode === RCODE.NXDOMAIN || !found
  a.ttl = a.rcode !== RCODE.NOERROR && a.rcode !== RCODE.NXDOMAIN ? 0 : a.negative ? Math.min(nothing, least) : least
  if (a.ttl === Infinity) a.ttl = 0
  return true
}

/** Head and question of an answer to `q` at out[0]; returns the length so far. */
export function writeHead(out: Uint8Array, q: Query, flags: number): number {
  const n = q.end - q.off
  for (let i = 0; i < n; i++) out[i] = q.bytes[q.off + i]
  put16(out, 2, FLAG.QR | FLAG.RA | (q.flags & (OPCODE | FLAG.RD | FLAG.CD)) | flags)
  put16(out, 4, n > HEADER ? 1 : 0)
  put32(out, 6, 0)
  put16(out, 10, 0)
  return n
}

/** The proxy's own EDNS record, behind an answer of `n` bytes; `ede` with its text says why (RFC 8914). */
export function writeOpt(out: Uint8Array, n: number, q: Query, ede = -1, text = ''): number {
  put16(out, 10, be16(out, 10) + 1)
  out[n] = 0
  put16(out, n + 1, TYPE.OPT)
  put16(out, n + 3, OWN_SIZE)
  put32(out, n + 5, q.dnssec ? EDNS_DO : 0)
  const data = ede < 0 ? 0 : 6 + text.length
  put16(out, n + 9, data)
  n += 11
  if (ede < 0) return n
  put16(out, n, 15)
  put16(out, n + 2, 2 + text.length)
  put16(out, n + 4, ede)
  for (let i = 0; i < text.length; i++) out[n + 6 + i] = text.charCodeAt(i)
  return n + data
}

/** An answer without records. */
export function writeError(out: Uint8Array, q: Query, rcode: number, ede = -1, text = ''): number {
  const n = writeHead(out, q, rcode)
  return q.edns ? writeOpt(out, n, q, ede, text) : n
}

/** What a client gets whose UDP size is too small: the question, and TC, so that it comes back over TCP (RFC 2181 §9). */
export function writeTruncated(out: Uint8Array, q: Query, flags: number): number {
  const n = writeHead(out, q, (flags & (FLAG.AA | FLAG.AD | 15)) | FLAG.TC)
  return q.edns ? writeOpt(out, n, q) : n
}
