import assert from 'node:assert/strict'
import { beforeEach, describe, it } from 'node:test'
import dnsPacket from 'dns-packet'
import { type Asked, edeOf, idOf, ipv6, isTruncated, query, type Reply, rcodeOf, World } from './world.ts'

let w: World
beforeEach(() => {
  w = new World()
})
const servers = (): string[] => w.asked.map((a) => a.server)

describe('what passes', () => {
  it('goes up and comes down byte for byte but for the id', () => {
    const q = query({ name: 'ExAmple.com', type: 'SVCB' as 'A', id: 7, edns: { size: 4096, dnssec: true } })
    const odd = Buffer.concat([q, Buffer.alloc(0)])
    let answer: Buffer | undefined
    w.upstream = (a) => {
      assert.deepEqual(Buffer.from(a.bytes).subarray(2), odd.subarray(2))
      const head = Buffer.from(a.bytes.subarray(0, odd.length - 11))
      head[2] |= 0x80
      head.writeUInt16BE(2, 6)
      head.writeUInt16BE(0, 10)
      // Two records of a type nobody knows, one through a pointer, with data that looks like anything.
      const rr = Buffer.from('c00cff3100010000012c0005c00cffff00' + '00fffe00010000003c0003c0c0c0', 'hex')
      answer = Buffer.concat([head, rr])
      return answer
    }
    const got = w.send(odd)!
    assert.equal(idOf(got), 7)
    assert.deepEqual(Buffer.from(got).subarray(2), answer!.subarray(2))
  })

  it('asks with a new id and a new socket each time', () => {
    for (let i = 0; i < 50; i++) w.send(query({ name: `h${i}.example.com`, id: 1 }))
    assert.equal(new Set(w.asked.map((a) => idOf(a.bytes))).size, 50)
    assert.equal(new Set(w.asked.map((a) => a.sock.id)).size, 50)
    assert.equal(w.host.open().length, 0, 'and every socket is closed')
  })

  it('refuses transfers, and says so of what is no query for it', () => {
    for (const type of ['AXFR', 'IXFR']) assert.equal(rcodeOf(w.send(query({ name: 'example.com', type }))!), 5)
    const update = query({ name: 'example.com' })
    update[2] |= 5 << 3
    assert.equal(rcodeOf(w.send(update)!), 4)
    const none = query({ name: 'example.com' })
    none.writeUInt16BE(0, 4)
    assert.equal(rcodeOf(w.send(none)!), 1)
    const pointer = Buffer.concat([query({ name: '' }).subarray(0, 12), Buffer.from('c00c00010001', 'hex')])
    assert.equal(rcodeOf(w.send(pointer)!), 1)
    assert.equal(w.send(Buffer.alloc(5)), undefined)
    const answer = query({ name: 'example.com' })
    answer[2] |= 0x80
    assert.equal(w.send(answer), undefined)
    assert.deepEqual(w.drops, ['dns-malformed', 'dns-malformed'])
    assert.equal(w.asked.length, 0)
  })

  it('passes ANY, as any other type', () => {
    w.ask({ name: 'example.com', type: 'ANY' })
    assert.equal(w.asked.length, 1)
  })
})

describe('an answer that is none', () => {
  it('with a wrong id, question or direction is ignored, counted, and the true one still taken', () => {
    const forge =
      (change: (b: Buffer) => void) =>
      (a: Asked): Buffer => {
        const b = dnsPacket.encode(w.answer(a, [{ type: 'A', name: 'example.com', data: '6.6.6.6' }]))
        change(b)
        return b
      }
    let held: Asked | undefined
    w.upstream = (a) => {
      held = a
      return undefined
    }
    assert.equal(w.send(query({ name: 'example.com' })), undefined)
    for (const f of [
      forge((b) => b.writeUInt16BE(idOf(b) ^ 1, 0)),
      forge((b) => (b[13] = 0x7a)),
      forge((b) => (b[2] &= 0x7f)),
      (): Buffer => Buffer.alloc(3),
    ])
      w.inject(held!.sock, f(held!))
    w.settle()
    assert.equal(w.told.length, 0)
    assert.deepEqual(w.drops, new Array(4).fill('dns-forged'))
    w.inject(held!.sock, dnsPacket.encode(w.answer(held!, [{ type: 'A', name: 'example.com', data: '1.2.3.4' }])))
    w.settle()
    assert.equal(w.told.length, 1)
  })
})

describe('truncation', () => {
  const big = (a: Asked): Reply =>
    w.answer(
      a,
      Array.from({ length: 40 }, (_, i) => ({ type: 'A' as const, name: 'b.example', ttl: 60, data: `10.0.0.${i}` })),
    )

  it('what does not fit the client comes with TC and nothing else', () => {
    w.upstream = big
    const got = w.send(query({ name: 'b.example' }))!
    assert.ok(isTruncated(got))
    assert.ok(got.length <= 512)
    const p = dnsPacket.decode(Buffer.from(got))
    assert.deepEqual(p.answers, [])
    const whole = w.ask({ name: 'b.example', edns: { size: 4096 } })
    assert.equal(whole.answers!.length, 40)
    assert.equal(w.asked.length, 1, 'the second from the cache')
  })

  it('never sends a datagram that the link would have to cut', () => {
    w.upstream = (a) =>
      w.answer(
        a,
        Array.from({ length: 300 }, (_, i) => ({
          type: 'A' as const,
          name: 'b.example',
          ttl: 60,
          data: `10.0.${i >> 8}.${i & 255}`,
        })),
      )
    assert.ok(isTruncated(w.send(query({ name: 'b.example', edns: { size: 65535 } }))!))
  })

  it('upstream’s TC is passed on and not kept; over TCP it is asked over TCP', () => {
    w.upstream = (a) => (a.tcp ? big(a) : w.answer(a, [], { flags: dnsPacket.TRUNCATED_RESPONSE }))
    assert.ok(isTruncated(w.send(query({ name: 'b.example', edns: {} }))!))
    const s = new Stream(w)
    s.ask({ name: 'b.example', id: 99 })
    assert.equal(s.answers.length, 1)
    assert.equal(idOf(s.answers[0]), 99)
    assert.equal(dnsPacket.decode(Buffer.from(s.answers[0])).answers!.length, 40)
    assert.deepEqual(
      w.asked.map((a) => a.tcp),
      [false, true],
    )
  })
})

/** A guest's TCP connection. */
class Stream {
  readonly answers: Uint8Array[] = []
  closed = false
  /** Bytes that the service left with the guest. */
  #left = new Uint8Array(0)
  #stalled = false
  readonly #w: World
  readonly #handler
  #buffer: number[] = []

  constructor(world: World, port = 1) {
    this.#w = world
    this.#handler = world.dns.accept(
      port,
      (b) => {
        this.#buffer.push(...b)
        while (this.#buffer.length > 1 && this.#buffer.length >= 2 + this.#buffer[0] * 256 + this.#buffer[1]) {
          const n = this.#buffer[0] * 256 + this.#buffer[1]
          this.answers.push(Uint8Array.from(this.#buffer.slice(2, 2 + n)))
          this.#buffer = this.#buffer.slice(2 + n)
        }
        return !this.closed
      },
      () => {
        this.closed = true
      },
      () => {
        this.#stalled = false
      },
    )
  }

  /** As a guest's TCP does: what was not taken is given again when more is asked for. */
  push(b: Uint8Array): void {
    this.#left = Uint8Array.from([...this.#left, ...b])
    while (!this.#stalled && this.#left.length > 0) {
      const taken = this.#handler.push(this.#left)
      this.#stalled = taken < this.#left.length
      this.#left = this.#left.subarray(taken)
      this.#w.settle()
    }
  }

  ask(q: Parameters<typeof query>[0]): void {
    const m = query(q)
    this.push(Buffer.concat([Buffer.from([m.length >> 8, m.length & 255]), m]))
  }

  end(): void {
    this.#handler.end()
  }
}

describe('streams', () => {
  it('take queries in any pieces and answer each', () => {
    const s = new Stream(w)
    const m = query({ name: 'web', id: 5 })
    const framed = Buffer.concat([Buffer.from([0, m.length]), m])
    for (const byte of framed) s.push(Uint8Array.of(byte))
    s.push(Buffer.concat([framed, framed]))
    assert.equal(s.answers.length, 3)
    s.end()
    assert.ok(s.closed)
  })

  it('close after the guest’s FIN when the last answer is out', () => {
    let held: Asked | undefined
    w.upstream = (a) => {
      held = a
      return undefined
    }
    const s = new Stream(w)
    s.ask({ name: 'example.com' })
    s.end()
    assert.equal(s.closed, false)
    w.inject(held!.sock, dnsPacket.encode(w.answer(held!, [])), true)
    w.settle()
    assert.equal(s.answers.length, 1)
    assert.ok(s.closed)
  })

  it('take 64 questions at once, and more when these have answers', () => {
    const held: Asked[] = []
    w.upstream = (a) => {
      held.push(a)
      return undefined
    }
    const release = (n: number): void => {
      for (const a of held.splice(0, n)) w.inject(a.sock, dnsPacket.encode(w.answer(a, [])), true)
      w.settle()
      s.push(new Uint8Array(0))
    }
    const s = new Stream(w)
    const all = Array.from({ length: 100 }, (_, k) => query({ name: `n${k}.example`, id: k }))
    s.push(Buffer.concat(all.flatMap((m) => [Uint8Array.of(0, m.length), m])))
    assert.equal(held.length, 64)
    release(31)
    assert.equal(held.length, 33)
    release(1)
    assert.equal(held.length, 32 + 32)
    while (held.length > 0) release(10)
    assert.deepEqual(
      s.answers.map(idOf).sort((a, b) => a - b),
      all.map((_, k) => k),
    )
    assert.equal(s.closed, false)
  })

  it('hear of each question that is beyond the VM’s share', () => {
    w.upstream = () => undefined
    for (let i = 0; i < 199; i++) w.send(query({ name: `x${i}.example`, id: i }))
    const s = new Stream(w)
    s.ask({ name: 'a.example', id: 1 })
    s.ask({ name: 'b.example', id: 2, edns: {} })
    assert.deepEqual(s.answers.map(idOf), [2])
    assert.equal(rcodeOf(s.answers[0]), 2)
    assert.deepEqual(w.drops, ['dns-too-many'])
    w.wait(5000)
    assert.deepEqual(s.answers.map(idOf), [2, 1])
  })

  it('fall back to UDP where upstream has no TCP, at once when it is refused and after a while when it is silent', () => {
    w.upstream = (a) => (a.tcp ? 'refuse' : w.answer(a, []))
    const s = new Stream(w)
    s.ask({ name: 'a.example' })
    assert.equal(s.answers.length, 1)
    w.host.internet = () => 'hang'
    s.ask({ name: 'b.example' })
    assert.equal(s.answers.length, 1)
    w.wait(1000)
    assert.equal(s.answers.length, 2)
  })

  it('trailing bytes behind upstream’s answer are nobody’s loss', () => {
    w.upstream = (a) => {
      const b = dnsPacket.encode(w.answer(a, []))
      if (!a.tcp) return b
      w.host.tcpWrite(a.sock.id, Uint8Array.from([0, b.length, ...b, 0, 1, 2]))
      return undefined
    }
    const s = new Stream(w)
    s.ask({ name: 'a.example' })
    assert.equal(s.answers.length, 1)
    assert.deepEqual(
      w.dns.stats().servers.map((v) => [v.answers, v.failures]),
      [[1, 0]],
    )
  })

  it('that send rubbish, or idle, or are too many are closed', () => {
    const rubbish = new Stream(w)
    rubbish.push(Uint8Array.of(255, 255, 1, 2, 3))
    assert.ok(rubbish.closed)
    const short = new Stream(w)
    short.push(Uint8Array.of(0, 3, 1, 2, 3))
    assert.ok(short.closed)
    const idle = new Stream(w)
    w.wait(20_000, 1000)
    assert.ok(idle.closed)
    const many = Array.from({ length: 40 }, () => new Stream(w))
    assert.equal(many.filter((s) => s.closed).length, 8)
    w.dns.unbind(1)
    assert.equal(many.filter((s) => s.closed).length, 40)
  })
})

describe('servers', () => {
  beforeEach(() => {
    w = new World({ servers: ['10.0.0.1', '10.0.0.2'] })
  })
  const [A, B] = ['10.0.0.1:53', '10.0.0.2:53']
  const dead =
    (...who: string[]) =>
    (a: Asked): Reply =>
      who.includes(a.server) ? undefined : w.answer(a, [])
  let n = 0
  const fresh = (): Buffer => query({ name: `n${n++}.example`, edns: {} })

  it('are asked in the list’s order, one at a time', () => {
    w.send(fresh())
    w.send(fresh())
    assert.deepEqual(servers(), [A, A])
  })

  it('a silent one costs one try; the next is remembered, and the first taken back when it answers again', () => {
    w.upstream = dead(A)
    assert.equal(w.send(fresh()), undefined)
    w.wait(800)
    assert.equal(w.told.length, 1)
    w.asked.length = 0
    assert.ok(w.send(fresh()), 'now at once')
    assert.ok(servers().includes(B))
    w.upstream = dead()
    w.wait(11_000)
    w.send(fresh())
    w.asked.length = 0
    w.send(fresh())
    assert.deepEqual(servers(), [A])
    assert.equal(w.host.open().length, 0)
  })

  it('one that refuses costs no time', () => {
    w.upstream = (a) => (a.server === A ? 'refuse' : w.answer(a, []))
    assert.ok(w.send(fresh()))
    assert.deepEqual(servers(), [A, B])
  })

  it('a SERVFAIL is asked of the next; if nobody knows better it is passed on, and not kept', () => {
    w.upstream = (a) => w.answer(a, [], { rcode: a.server === A ? 2 : 0 })
    const q = fresh()
    assert.equal(rcodeOf(w.send(q)!), 0)
    w.upstream = (a) => w.answer(a, [], { rcode: 2 })
    const r = fresh()
    assert.equal(rcodeOf(w.send(r)!), 2)
    w.asked.length = 0
    w.upstream = dead()
    assert.equal(rcodeOf(w.send(r)!), 0)
  })

  it('all silent: SERVFAIL within five seconds, saying why; back at once when one answers', () => {
    w.upstream = () => undefined
    w.send(fresh())
    w.wait(5000, 1000)
    assert.equal(w.told.length, 1)
    assert.equal(rcodeOf(w.told[0].bytes), 2)
    assert.deepEqual(edeOf(w.told[0].bytes), [22, 'no name server answered'])
    assert.equal(w.host.open().length, 0)
    w.upstream = dead()
    assert.equal(rcodeOf(w.send(fresh())!), 0)
  })

  it('no route: SERVFAIL at once', () => {
    w.host.socketsFail = 101
    const got = w.send(fresh())!
    assert.equal(rcodeOf(got), 2)
    assert.deepEqual(edeOf(got), [23, 'no name server can be reached'])
    w.host.socketsFail = 0
    w.host.sendsFail = 101
    assert.equal(rcodeOf(w.send(fresh())!), 2)
    assert.equal(w.host.open().length, 0)
    w.host.sendsFail = 0
    assert.equal(rcodeOf(w.send(fresh())!), 0)
  })

  it('an offline start has none, and works when they come, also for what is in flight', () => {
    w = new World({ servers: [] })
    const got = w.send(fresh())!
    assert.equal(rcodeOf(got), 2)
    assert.deepEqual(edeOf(got), [23, 'the host has no name server'])
    w.dns.setServers([A.split(':')[0]])
    w.upstream = dead(A)
    w.send(fresh())
    assert.equal(w.told.length, 1)
    w.dns.setServers(['10.0.0.2'])
    w.settle()
    assert.equal(w.told.length, 2)
    assert.equal(rcodeOf(w.told[1].bytes), 0)
    assert.equal(w.host.open().length, 0)
  })

  it('may be IPv6 and on another port; what is none is said', () => {
    assert.deepEqual(w.dns.setServers(['fd00::53', '127.0.0.1#5300', 'fe80::1%eth0', 'nonsense', '1.2.3.4#0']), [
      'fe80::1%eth0',
      'nonsense',
      '1.2.3.4#0',
    ])
    w.upstream = (a) => (a.server === '127.0.0.1:5300' ? w.answer(a, []) : 'refuse')
    assert.ok(w.send(fresh()))
    assert.deepEqual(servers(), ['[fd00::53]:53', '127.0.0.1:5300'])
  })

  it('may be link-local, with the index of the link', () => {
    const useless = ['fe80::1', 'fe80::1%', 'fe80::1%eth0', 'fd00::1%3', 'fe80::1%0', '10.0.0.1%3']
    assert.deepEqual(w.dns.setServers(['fe80::1%259', 'fe80::2%3#5353', ...useless]), useless)
    w.upstream = (a) => (a.server.endsWith(':53') ? 'refuse' : w.answer(a, []))
    assert.ok(w.send(fresh()))
    // Where host sockets look for it: in bytes 4 to 7.
    assert.deepEqual(servers(), ['[fe80:0:0:103::1]:53', '[fe80:0:0:3::2]:5353'])
  })

  it('are never the service itself', () => {
    w = new World({ ipv6 })
    const own = ['192.168.100.2', '192.168.100.1', 'fd12:3456:789a:1::2', 'fd12:3456:789A:0001::1']
    assert.deepEqual(w.dns.setServers([...own, '10.0.0.9']), own)
    w.send(fresh())
    assert.deepEqual(servers(), ['10.0.0.9:53'])
  })

  it('a lost datagram is sent again', () => {
    w = new World()
    let tries = 0
    w.upstream = (a) => (++tries < 3 ? undefined : w.answer(a, []))
    w.send(fresh())
    w.wait(2500)
    assert.equal(w.told.length, 1)
    assert.equal(tries, 3)
  })
})

describe('questions in flight', () => {
  it('that are equal are asked once, and each is answered with its own id, spelling and EDNS', () => {
    let held: Asked | undefined
    w.upstream = (a) => {
      held = a
      return undefined
    }
    w.send(query({ name: 'example.com', id: 1, edns: {} }), 1, 1000)
    w.send(query({ name: 'EXAMPLE.com', id: 2, edns: {} }), 2, 2000)
    w.send(query({ name: 'EXAMPLE.com', id: 2, edns: {} }), 2, 2000)
    assert.equal(w.asked.length, 1)
    w.inject(
      held!.sock,
      dnsPacket.encode(w.answer(held!, [{ type: 'A', name: 'example.com', ttl: 0, data: '1.1.1.1' }])),
    )
    w.settle()
    assert.deepEqual(
      w.told.map((t) => [t.port, idOf(t.bytes), dnsPacket.decode(Buffer.from(t.bytes)).questions![0].name]),
      [
        [1, 1, 'example.com'],
        [2, 2, 'EXAMPLE.com'],
      ],
    )
    assert.equal(w.told[1].to, '192.168.100.11:2000')
  })

  it('are bounded for each VM; the others go on', () => {
    w.upstream = (a) => (a.packet.questions![0].name.startsWith('x') ? undefined : w.answer(a, []))
    for (let i = 0; i < 300; i++) w.send(query({ name: `x${i}.example`, id: i }), 1)
    assert.equal(w.drops.length, 100)
    assert.ok(w.drops.every((d) => d === 'dns-too-many'))
    assert.ok(w.send(query({ name: 'y.example' }), 2))
    w.wait(5000)
    assert.equal(w.host.open().length, 0)
    assert.equal(w.dns.stats().inFlight, 0)
    assert.ok(w.send(query({ name: 'z.example' }), 1))
  })

  it('of a few greedy VMs do not crowd out another', () => {
    w.upstream = (a) => (a.packet.questions![0].name.startsWith('x') ? undefined : w.answer(a, []))
    for (let port = 10; port < 20; port++)
      for (let i = 0; i < 250; i++) w.send(query({ name: `x${i}.p${port}.example`, id: i }), port)
    assert.ok(w.host.open().length < 600)
    assert.ok(w.send(query({ name: 'y.example' }), 2))
  })

  it('end with the port that asked', () => {
    w.upstream = () => undefined
    w.send(query({ name: 'a.example' }), 1)
    w.send(query({ name: 'b.example' }), 2)
    w.dns.unbind(1)
    assert.equal(w.host.open().length, 1)
    w.wait(5000)
    assert.deepEqual(
      w.told.map((t) => t.port),
      [2],
    )
  })
})

describe('policy', () => {
  it('is asked before the cache and upstream are, by VM and name', () => {
    const seen: string[] = []
    w.ask('blocked.example')
    w.policy = (port, name) => {
      seen.push(`${port} ${name}`)
      return port === 1 && name.startsWith('blocked') ? 'r7' : undefined
    }
    w.asked.length = 0
    const got = w.send(query({ name: 'BLOCKED.example', edns: {} }))!
    assert.equal(rcodeOf(got), 5)
    assert.deepEqual(edeOf(got), [15, 'rule r7'])
    assert.equal(w.asked.length, 0)
    assert.deepEqual(seen, ['1 blocked.example'])
    assert.deepEqual(w.drops, ['dns-denied'])
    assert.equal(rcodeOf(w.send(query({ name: 'blocked.example' }), 2)!), 0)
  })
})
