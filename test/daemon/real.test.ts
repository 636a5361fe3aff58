/**
 * The daemon with the real sandbox and the real userspace backend, as root: it is killed (-9) at each checkpoint, and what
 * the machine holds is compared: processes of VMs and data planes, links, listening ports, mounts, directories.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { accessSync, existsSync, readdirSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import { Store } from '../../src/daemon/store.ts'
import { eventually } from '../eventually.ts'
import { exited, kill9, Lab } from './harness.ts'

function missing(): string | false {
  if (process.getuid?.() !== 0) return 'needs root'
  try {
    accessSync('/dev/net/tun', 6)
  } catch {
    return 'needs /dev/net/tun'
  }
  return false
}
const skip = missing()
/** Free on this machine in all likelihood; below the ephemeral range. */
const PORT = 21873

const commandLines = (): string[] =>
  readdirSync('/proc')
    .filter((d) => /^\d+$/.test(d))
    .map((d) => {
      try {
        return readFileSync(`/proc/${d}/cmdline`, 'utf8')
      } catch {
        return ''
      }
    })

/** What of this lab is on the machine; empty when nothing is. VM ids and subnets are read from the store while it knows them. */
class Traces {
  readonly #lab: Lab
  readonly #ids = new Set<string>()
  readonly #addresses = new Set<string>()

  constructor(lab: Lab) {
    this.#lab = lab
  }

  note(): void {
    const s = new Store(this.#lab.paths.store)
    for (const v of s.vms()) this.#ids.add(v.id)
    for (const n of s.networks()) this.#addresses.add(n.subnet.replace(/\.\d+\/24$/, '.254/24'))
    s.close()
  }

  find(): string[] {
    const found: string[] = []
    for (const line of commandLines()) {
      if (line.includes(`${this.#lab.paths.runDir}/userspace`)) found.push(`data plane: ${line}`)
      for (const id of this.#ids) if (line.includes(`noid-vm=${id}`)) found.push(`process of ${id}`)
    }
    const links = execFileSync('ip', ['-o', 'addr'], { encoding: 'utf8' })
    for (const a of this.#addresses) if (links.includes(`inet ${a}`)) found.push(`link with ${a}`)
    const hex = PORT.toString(16).toUpperCase().padStart(4, '0')
    const listening = new RegExp(`:${hex} \\S+ 0A`)
    for (const table of ['tcp', 'tcp6'])
      if (listening.test(readFileSync(`/proc/net/${table}`, 'latin1'))) found.push(`listener on ${PORT}`)
    for (const m of readFileSync('/proc/self/mountinfo', 'utf8').split('\n'))
      if (m.includes(this.#lab.home)) found.push(`mount: ${m}`)
    for (const dir of [`${this.#lab.paths.stateDir}/vms`, `${this.#lab.paths.runDir}/userspace`])
      if (existsSync(dir)) found.push(...readdirSync(dir).map((f) => `${dir}/${f}`))
    return found
  }
}

for (const point of ['reserved', 'network-made', 'published', 'prepared', 'attached']) {
  test(`killed at "${point}" of create: the machine is as it was`, { skip }, async (t) => {
    const lab = new Lab(t, 'real-main.ts')
    const traces = new Traces(lab)
    const p = await lab.up({ CRASH_AT: point })
    await assert.rejects(lab.create('web', { ports: [`${PORT}:80`] }))
    await exited(p)
    traces.note()
    await lab.up()
    assert.deepEqual(await lab.client.vms(), [])
    assert.deepEqual(await lab.client.networks(), [])
    await eventually('nothing is left', () => traces.find().length === 0).catch(() => {})
    assert.deepEqual(traces.find(), [])
  })
}

test('killed at each point of destroy: the machine is as it was', { skip }, async (t) => {
  const lab = new Lab(t, 'real-main.ts')
  const traces = new Traces(lab)
  for (const point of ['destroying', 'unpublished', 'ended', 'detached', 'removed', 'forgotten', 'network-deleting']) {
    const first = await lab.up()
    await lab.create('web', { ports: [`${PORT}:80`] })
    traces.note()
    assert.ok(traces.find().length >= 4)
    await kill9(first)
    const p = await lab.up({ CRASH_AT: point })
    await assert.rejects(lab.client.destroy('web'))
    await exited(p)
    const last = await lab.up()
    assert.deepEqual(await lab.client.vms(), [], point)
    await eventually('nothing is left', () => traces.find().length === 0).catch(() => {})
    assert.deepEqual(traces.find(), [], point)
    await kill9(last)
  }
})

test('killed at any moment of create: the machine is as it was', { skip }, async (t) => {
  const lab = new Lab(t, 'real-main.ts')
  const traces = new Traces(lab)
  for (let i = 0; i < 10; i++) {
    const p = await lab.up()
    const timer = setTimeout(() => p.kill('SIGKILL'), 50 * i)
    await lab.create('web', { ports: [`${PORT}:80`] }).catch(() => {})
    await exited(p)
    clearTimeout(timer)
    traces.note()
    const next = await lab.up()
    const [web] = await lab.client.vms()
    if (web !== undefined) {
      assert.equal(web.state, 'running', `${web.problem}`)
      await lab.client.destroy('web')
    }
    await eventually('nothing is left', () => traces.find().length === 0).catch(() => {})
    assert.deepEqual(traces.find(), [], `after ${50 * i} ms`)
    await kill9(next)
  }
})

test('a sandbox that ends as it was told to has shut itself down; one that is killed is started again', {
  skip,
}, async (t) => {
  const lab = new Lab(t, 'real-main.ts')
  await lab.up()
  const calm = await lab.create('calm', { restart: 'on-failure' })
  const killed = await lab.create('killed', { restart: 'on-failure' })
  process.kill(calm.pid as number, 'SIGTERM')
  process.kill(killed.pid as number, 'SIGKILL')
  await eventually('the one is stopped', async () => (await lab.client.vm('calm')).state === 'stopped')
  await eventually('the other runs again', async () => {
    const now = await lab.client.vm('killed')
    return now.state === 'running' && now.pid !== killed.pid
  })
  const [a, b] = [await lab.client.vm('calm'), await lab.client.vm('killed')]
  assert.deepEqual([a.problem, a.restartAt, a.restarts], ['it shut itself down', null, 0])
  assert.deepEqual([b.address, b.restarts], [killed.address, 1])
  for (const name of ['calm', 'killed']) await lab.client.destroy(name)
})
