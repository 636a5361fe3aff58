/** Restart policies: what is started again, when, and what a person's word stops. The daemon is real, its VMs are `sleep`. */
import assert from 'node:assert/strict'
import { DatabaseSync } from 'node:sqlite'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Vm } from '../../src/api/contract.ts'
import { BACKOFF, due, parsePolicy, plan } from '../../src/daemon/restarts.ts'
import { NoidError } from '../../src/errors.ts'
import { eventually } from '../eventually.ts'
import { kill9, Lab } from './harness.ts'

const QUICK = { BACKOFF: JSON.stringify({ firstMs: 10, mostMs: 20, steadyMs: 3_600_000 }) }
const SLOW = { BACKOFF: JSON.stringify({ firstMs: 3_600_000, mostMs: 3_600_000, steadyMs: 3_600_000 }) }
/** Longer than the reconciler's round: what has not happened by then is not planned. */
const ROUNDS_MS = 2_500

const dies = (vm: Vm): void => void process.kill(vm.pid as number, 'SIGKILL')
const state = async (lab: Lab, name: string): Promise<string> => (await lab.client.vm(name)).state

test('pauses double up to a minute, begin anew for who has lived, and end with the policy', () => {
  const now = Date.parse('2026-01-01T00:10:00.000Z')
  const pauses: number[] = []
  let v = { restart: 'always', restarts: 0, startedAt: new Date(now - 1_000).toISOString() as string | null }
  for (let i = 0; i < 9; i++) {
    const next = plan(v, i % 2 === 0, now, BACKOFF)
    pauses.push((Date.parse(next.restartAt as string) - now) / 1000)
    v = { ...v, restarts: next.restarts }
  }
  assert.deepEqual(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60])
  const lived = plan({ ...v, startedAt: '2026-01-01T00:09:00.000Z' }, false, now, BACKOFF)
  assert.deepEqual(lived, { restartAt: '2026-01-01T00:10:01.000Z', restarts: 1 })

  const never = { restartAt: null, restarts: 0 }
  assert.deepEqual(plan({ restart: 'no', restarts: 0, startedAt: null }, false, now, BACKOFF), never)
  assert.deepEqual(plan({ restart: 'on-failure', restarts: 0, startedAt: null }, true, now, BACKOFF), never)
  const twice = { restart: 'on-failure:2', startedAt: null }
  assert.equal(plan({ ...twice, restarts: 1 }, false, now, BACKOFF).restarts, 2)
  assert.deepEqual(plan({ ...twice, restarts: 2 }, false, now, BACKOFF), { restartAt: null, restarts: 2 })

  assert.deepEqual(parsePolicy('on-failure:5'), { when: 'on-failure', max: 5 })
  for (const text of ['', 'yes', 'always:3', 'no:1', 'on-failure:0', 'on-failure:', 'on-failure:x'])
    assert.throws(
      () => parsePolicy(text),
      (e) => e instanceof NoidError && e.code === 'INVALID_INPUT',
    )

  const soon = { restartAt: new Date(now).toISOString(), phase: 'failed' } as const
  assert.equal(due(soon, now, BACKOFF), true)
  assert.equal(due(soon, now - 1, BACKOFF), false)
  assert.equal(due(soon, now - BACKOFF.mostMs, BACKOFF), false)
  // The clock was set back by more than any pause.
  assert.equal(due(soon, now - BACKOFF.mostMs - 1, BACKOFF), true)
  assert.equal(due({ ...soon, phase: 'running' }, now, BACKOFF), false)
})

test('always: a VM whose process ends runs again as it was; after a stop it stays stopped', async (t) => {
  const lab = new Lab(t)
  await lab.up(QUICK)
  await assert.rejects(lab.create('a', { restart: 'sometimes' }), /not a restart policy/)
  const first = await lab.create('a', { restart: 'always', ports: ['8080:80'] })
  assert.deepEqual([first.restart, first.restarts, first.restartAt], ['always', 0, null])
  dies(first)
  let now: Vm | undefined
  await eventually('it runs again', async () => {
    now = await lab.client.vm('a')
    return now.state === 'running' && now.pid !== first.pid && now.restartAt === null
  })
  assert.deepEqual([now?.address, now?.mac, now?.ports, now?.restarts], [first.address, first.mac, first.ports, 1])
  assert.equal(now?.problem, null)
  assert.ok(lab.world.has('pub-tcp-8080'))

  // A start that fails is tried again, too.
  lab.world.mood = { failStart: true }
  dies(now as Vm)
  await eventually('it was tried in vain', async () => (await lab.client.vm('a')).restarts > 2)
  assert.match((await lab.client.vm('a')).problem ?? '', /does not start/)
  lab.world.mood = {}
  await eventually('it runs after all', async () => (await state(lab, 'a')) === 'running')

  const stopped = await lab.client.stop('a', 0)
  assert.deepEqual([stopped.state, stopped.restartAt, stopped.restarts], ['stopped', null, 0])
  await sleep(ROUNDS_MS)
  assert.equal(await state(lab, 'a'), 'stopped')
})

test('a stop in the pause is the last word, and so is a start', async (t) => {
  const lab = new Lab(t)
  await lab.up(SLOW)
  for (const name of ['a', 'b']) dies(await lab.create(name, { restart: 'on-failure' }))
  await eventually('both have ended', async () => (await lab.client.vms()).every((v) => v.restartAt !== null))
  assert.equal((await lab.client.vm('a')).problem, 'its init ended')
  const a = await lab.client.stop('a')
  assert.deepEqual([a.state, a.restartAt, a.problem], ['stopped', null, null])
  const b = await lab.client.start('b', () => {})
  assert.deepEqual([b.state, b.restartAt, b.restarts], ['running', null, 0])
})

test('on-failure: not for a VM that shut itself down, and no oftener than it says; last words are told', async (t) => {
  const lab = new Lab(t)
  await lab.up(QUICK)
  lab.world.mood = { obituary: { orderly: true } }
  dies(await lab.create('calm', { restart: 'on-failure' }))
  await eventually('it was seen', async () => (await state(lab, 'calm')) === 'stopped')
  assert.equal((await lab.client.vm('calm')).problem, 'it shut itself down')

  lab.world.mood = {
    obituary: { orderly: false, words: '\u001b[6nkernel \u001b]52;c;eA==\u0007panic\r\nnot syncing\n' },
  }
  const once = await lab.create('once', { restart: 'on-failure:1' })
  dies(once)
  let again = once
  await eventually('it runs again', async () => {
    again = await lab.client.vm('once')
    return again.state === 'running' && again.pid !== once.pid
  })
  dies(again)
  await eventually('it is given up', async () => (await state(lab, 'once')) === 'failed')
  const last = await lab.client.vm('once')
  assert.deepEqual([last.restartAt, last.restarts], [null, 1])
  assert.equal(last.problem, 'it ended unexpectedly; its last words:\nkernel ]52;c;eA==panic\nnot syncing')
  await sleep(ROUNDS_MS)
  assert.deepEqual([await state(lab, 'once'), await state(lab, 'calm')], ['failed', 'stopped'])
})

test('a clock that was set back delays no start by more than the longest pause', async (t) => {
  const lab = new Lab(t)
  await lab.up(SLOW)
  dies(await lab.create('a', { restart: 'always' }))
  await eventually('it is planned', async () => (await lab.client.vm('a')).restartAt !== null)
  // As it looks when the clock goes back by five hours.
  const db = new DatabaseSync(lab.paths.store)
  db.prepare('UPDATE vms SET restart_at = ?').run(new Date(Date.now() + 5 * 3_600_000).toISOString())
  db.close()
  await eventually('it runs again', async () => (await state(lab, 'a')) === 'running')
  assert.equal((await lab.client.vm('a')).restartAt, null)
})

test('a daemon killed in the pause, or while it starts a VM again: the next one does it', async (t) => {
  const lab = new Lab(t)
  const before = await lab.up(SLOW)
  const a = await lab.create('a', { restart: 'on-failure' })
  dies(a)
  await eventually('it is planned', async () => (await lab.client.vm('a')).restartAt !== null)
  await kill9(before)
  const db = new DatabaseSync(lab.paths.store)
  db.exec(`UPDATE vms SET restart_at = '2026-01-01T00:00:00.000Z'`)
  db.close()
  // This one is killed in the middle of it.
  const crashing = lab.spawn({ ...SLOW, CRASH_AT: 'prepared' })
  await eventually('it was killed', () => crashing.signalCode === 'SIGKILL')
  await lab.up(SLOW)
  await eventually('it runs again', async () => (await state(lab, 'a')) === 'running')
  assert.equal((await lab.client.vm('a')).restartAt, null)
  assert.deepEqual(
    lab.world.list().map((f) => f.slice(0, 3)),
    ['att', 'net', 'vm-'],
  )
})

test('after a reboot every VM that is to run always does, also one that ended in the meantime; others stay', async (t) => {
  const lab = new Lab(t)
  const daemon = await lab.up(QUICK)
  const always = ['a1', 'a2', 'a3', 'a4', 'a5']
  const vms: Vm[] = []
  for (const [i, name] of always.entries())
    vms.push(await lab.create(name, { restart: 'always', ports: i === 0 ? ['8080:80'] : [] }))
  vms.push(await lab.create('failing', { restart: 'on-failure' }), await lab.create('never'))
  await lab.create('stopped', { restart: 'always' })
  await lab.client.stop('stopped', 0)
  await kill9(daemon)
  for (const v of vms) dies(v)
  const db = new DatabaseSync(lab.paths.store)
  db.exec(`UPDATE vms SET boot_id = 'another' WHERE boot_id IS NOT NULL`)
  db.close()
  // What the backend had is gone with the boot.
  for (const f of lab.world.list()) lab.world.drop(f)
  await lab.up(QUICK)
  await eventually('all of them run', async () => {
    const now = await lab.client.vms()
    return always.every((n) => now.find((v) => v.name === n)?.state === 'running')
  })
  const now = await lab.client.vms()
  for (const was of vms.slice(0, always.length)) {
    const is = now.find((v) => v.name === was.name)
    assert.deepEqual([is?.address, is?.ports], [was.address, was.ports])
  }
  assert.ok(lab.world.has('pub-tcp-8080'))
  for (const name of ['failing', 'never', 'stopped'])
    assert.equal(now.find((v) => v.name === name)?.state, 'stopped', name)
})
