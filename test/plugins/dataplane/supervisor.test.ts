import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, mock, test } from 'node:test'
import type { BackendEvent } from '../../../src/plugins/contract.ts'
import type { Link } from '../../../src/plugins/dataplane/link.ts'
import { DataPlaneProcess, type Running } from '../../../src/plugins/dataplane/process.ts'
import { Supervisor } from '../../../src/plugins/dataplane/supervisor.ts'

const signal = new AbortController().signal
const give = async () => {}

/** A data plane whose link is lost, and whose start fails, when the test says so. */
class Plane {
  readonly network = 'net'
  readonly asked: string[] = []
  broken = false
  link: Link | undefined
  ensure = async (): Promise<Running> => {
    if (this.broken) throw new Error('no memory')
    const asked = this.asked
    const link = {
      open: true,
      silent: false,
      onEvent: () => {},
      onClose: () => {},
      request: async ({ op }: { op: string }) => asked.push(op),
      close() {
        this.open = false
      },
    }
    this.link = link as unknown as Link
    return { link: this.link, started: true } as unknown as Running
  }
  kill = async () => {
    this.asked.push('kill')
  }
  lose(silent = false): void {
    Object.assign(this.link as Link, { open: false, silent })
    this.link?.onClose()
  }
}

let plane: Plane
let supervisor: Supervisor
let attempts: number[]
let said: string[]
let events: BackendEvent[]
let leased: string[]
/** Let promises settle, then the mocked clock go on. */
const pass = async (ms: number) => {
  for (let i = 0; i < 10; i++) await Promise.resolve()
  mock.timers.tick(ms)
  for (let i = 0; i < 10; i++) await Promise.resolve()
}

beforeEach(() => {
  mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'Date'], now: 1_000_000 })
  plane = new Plane()
  attempts = []
  said = []
  events = []
  leased = []
  supervisor = new Supervisor(plane, {
    what: 'services',
    network: 'net-1',
    ctx: { log: (level, text) => said.push(`${level}: ${text}`), notify: (e) => events.push(e) },
    onLease: (id, state) => leased.push(`${id} ${state}`),
    bringBack: () => {
      attempts.push(Date.now())
      return supervisor.connect(signal, give)
    },
  })
})
afterEach(() => {
  supervisor.stop()
  mock.timers.reset()
})

test('a loss is repaired at once', async () => {
  await supervisor.connect(signal, give)
  const first = supervisor.link
  plane.lose()
  assert.equal(supervisor.link, undefined)
  await pass(0)
  assert.equal(attempts.length, 1)
  assert.ok(supervisor.link !== undefined && supervisor.link !== first)
  assert.deepEqual(said, ['warn: lost the services of net: starting anew'])
})

test('who fails again and again is tried less and less often, for ever; who lived a minute begins anew', async () => {
  await supervisor.connect(signal, give)
  plane.broken = true
  plane.lose()
  for (let ms = 0; ms < 40_000; ms += 50) await pass(ms === 0 ? 0 : 50)
  const waits = attempts.map((t, i) => t - (i === 0 ? 1_000_000 : (attempts[i - 1] as number)))
  assert.deepEqual(waits, [0, 100, 500, 2000, 10_000, 10_000, 10_000])
  assert.equal(said.at(-1), 'error: could not bring back the services of net: no memory')

  plane.broken = false
  await pass(10_000)
  assert.ok(supervisor.link)
  // It dies right after its start: still one of those.
  attempts = []
  plane.lose()
  await pass(9_999)
  assert.equal(attempts.length, 0)
  await pass(1)
  assert.equal(attempts.length, 1)
  await pass(60_001)
  plane.lose()
  await pass(0)
  assert.equal(attempts.length, 2)
})

test('it is asked now and then, and killed when it was lost for its silence', async () => {
  await supervisor.connect(signal, give)
  await pass(15_000)
  assert.deepEqual(plane.asked, ['hello'])
  plane.lose(true)
  await pass(0)
  assert.deepEqual(plane.asked, ['hello', 'kill'])
  plane.lose()
  await pass(100)
  assert.deepEqual(plane.asked, ['hello', 'kill'])
})

test('a link that was lost while a command brings it back waits for no attempt', async () => {
  await supervisor.connect(signal, give)
  plane.lose()
  await supervisor.connect(signal, give)
  await pass(20_000)
  assert.equal(attempts.length, 0)
})

test('what was half given is given again', async () => {
  let refuse = true
  const halfway = async () => {
    if (refuse) throw new Error('the parent is down')
  }
  await assert.rejects(supervisor.connect(signal, halfway), /the parent is down/)
  assert.equal(supervisor.link, undefined)
  assert.equal(plane.link?.open, false)
  refuse = false
  assert.equal(await supervisor.connect(signal, halfway), supervisor.link)
  assert.ok(supervisor.link)
})

test('what fails on its first way up is tried again until it is there, but not after its end', async () => {
  plane.broken = true
  await assert.rejects(supervisor.connect(signal, give), /no memory/)
  // Whoever asked has its moment to give the network up.
  await pass(0)
  assert.equal(attempts.length, 0)
  await pass(100)
  assert.equal(attempts.length, 1)
  plane.broken = false
  await pass(500)
  assert.equal(attempts.length, 2)
  assert.ok(supervisor.link)
  await pass(20_000)
  assert.equal(attempts.length, 2)

  supervisor.link?.close()
  plane.broken = true
  await assert.rejects(supervisor.connect(signal, give), /no memory/)
  supervisor.stop()
  await pass(20_000)
  assert.equal(attempts.length, 2)
})

test('after the end nothing is brought back, not even what was on its way', async () => {
  await supervisor.connect(signal, give)
  plane.lose()
  assert.equal(supervisor.stop(), undefined)
  await pass(20_000)
  assert.equal(attempts.length, 0)
  await assert.rejects(supervisor.connect(signal, give), /does not answer/)

  const late = new Supervisor(plane, {
    what: 'data plane',
    network: 'n',
    ctx: { log() {}, notify() {} },
    bringBack: async () => {},
  })
  const connecting = late.connect(signal, give)
  late.stop()
  await assert.rejects(connecting, /does not answer/)
  assert.equal(plane.link?.open, false)
})

test('leases and warnings go to the daemon, leases to their owner as well', async () => {
  await supervisor.connect(signal, give)
  plane.link?.onEvent({ event: 'lease', id: 'a', address: '10.0.0.2', state: 'bound', expiresInMs: 1000 })
  plane.link?.onEvent({ event: 'lease', id: 'b', address: '10.0.0.3', state: 'released', expiresInMs: null } as never)
  plane.link?.onEvent({ event: 'warning', message: 'two say they are 10.0.0.2' })
  assert.deepEqual(leased, ['a bound', 'b released'])
  assert.deepEqual(events, [
    { type: 'lease', network: 'net-1', attachment: 'a', address: '10.0.0.2', state: 'bound', expiresAt: 1_001_000 },
    { type: 'lease', network: 'net-1', attachment: 'b', address: '10.0.0.3', state: 'released', expiresAt: null },
    { type: 'warning', network: 'net-1', message: 'two say they are 10.0.0.2' },
  ])
})

test('a real data plane that is killed is there again', async () => {
  mock.timers.reset()
  const dir = mkdtempSync(join(tmpdir(), 'nt-supervisor-'))
  const real = new DataPlaneProcess(join(dir, 'run', 'net'), 'net', () => {})
  const back = Promise.withResolvers<void>()
  const own = new Supervisor(real, {
    what: 'data plane',
    network: 'net',
    ctx: { log() {}, notify() {} },
    bringBack: async () => {
      await own.connect(signal, give)
      back.resolve()
    },
  })
  try {
    const pidOf = async (l: Link | undefined) => (await (l as Link).request<{ pid: number }>({ op: 'hello' })).pid
    const first = await pidOf(await own.connect(signal, give))
    process.kill(first, 'SIGKILL')
    await back.promise
    assert.notEqual(await pidOf(own.link), first)
  } finally {
    await real.end(own.stop())
    rmSync(dir, { recursive: true })
  }
})
