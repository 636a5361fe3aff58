// A plug-in's backends run in a process of their own: the kit through that process, and what a bad plug-in can do to the daemon.
import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { conformance } from '../../src/plugins/conformance/index.ts'
import type { BackendContext, BackendDescriptor, NetworkSpec } from '../../src/plugins/contract.ts'
import { Registry } from '../../src/plugins/registry.ts'
import { Plugin } from '../../src/plugins/remote/plugin.ts'
import { backendSources } from '../../src/plugins/sources.ts'
import { processStat } from '../../src/sys/process.ts'
import { eventually } from '../eventually.ts'
import { missing } from './needs.ts'
import { ownHost } from './own-host.ts'

const skip = missing() || ownHost()
const dir = mkdtempSync(join(tmpdir(), 'noid-remote-'))
after(() => rmSync(dir, { recursive: true, force: true }))
const example = fileURLToPath(new URL('../../examples/noid-backend-ptp/src/', import.meta.url))

/** A plug-in's package with this hook. */
function plugin(name: string, hook: string): string {
  const root = join(dir, name)
  mkdirSync(root, { recursive: true })
  writeFileSync(
    join(root, 'package.json'),
    JSON.stringify({ name, type: 'module', oclif: { hooks: { 'noid:backends': './hook.ts' } } }),
  )
  writeFileSync(join(root, 'hook.ts'), hook)
  return root
}

/** A backend of nothing but promises, with some verbs replaced. */
const stub = (name: string, verbs: string): string => `
export default async () => [{
  name: '${name}', apiVersion: 1, summary: 'a test', provides: ['netdev'],
  capabilities: { addressing: 'noid', privileges: [], publish: false, dns: false, isolation: false, ipv6: false },
  load: async () => (ctx) => {
    const networks = []
    return {
      parseConfig: () => ({}), status: async () => ({ ok: true, problems: [] }),
      createNetwork: async (n) => { networks.push(n.id) }, deleteNetwork: async () => {}, attach: async () => { throw new Error('no') },
      detach: async () => {}, check: async () => {}, gc: async () => ({ removed: networks }), close: async () => {},
      ${verbs}
    }
  },
}]`

const context: BackendContext = { runDir: dir, stateDir: dir, privileged: false, log: () => {}, notify: () => {} }
const second = () => AbortSignal.timeout(1000)
const soon = () => AbortSignal.timeout(60_000)
/** Processes that start at once on a busy machine may take long; only one that loops must be late. */
const HOOK_MS = 60_000
const open: Plugin[] = []
after(() => {
  for (const p of open) p.close()
})

async function descriptorsOf(name: string, hook: string): Promise<BackendDescriptor[]> {
  const p = new Plugin(name, plugin(name, hook), HOOK_MS)
  open.push(p)
  return (await p.descriptors()) as BackendDescriptor[]
}

if (skip === false) {
  const [ptp] = await descriptorsOf('ptp-plugin', `export { default } from ${JSON.stringify(join(example, 'hook.ts'))}`)
  conformance(test as never, ptp as BackendDescriptor)
} else test('the kit through a process of its own', { skip }, () => {})

test('a loop in a hook is told by name, and takes neither the daemon nor other plug-ins down', {
  timeout: 120_000,
}, async () => {
  const data = join(dir, 'data')
  const linked = {
    good: plugin('good', stub('good', '')),
    throws: plugin('throws', "throw new Error('not today')"),
    twice: plugin('twice', stub('good', '')),
    old: plugin('old', stub('old', '').replace('apiVersion: 1', 'apiVersion: 99')),
  }
  mkdirSync(data, { recursive: true })
  const plugins = Object.entries(linked).map(([name, root]) => ({ name, root, type: 'link' }))
  writeFileSync(join(data, 'package.json'), JSON.stringify({ oclif: { plugins } }))
  const loops = new Plugin('loops', plugin('loops', 'export default async () => { for (;;); }'), 4_000)
  const sources = [
    { from: 'loops', backends: () => loops.descriptors() },
    ...(await backendSources({ NOID_DATA_DIR: data }, HOOK_MS)),
  ]
  const registry = await Registry.collect(sources, () => context, HOOK_MS)
  const names = registry.descriptors().map((d) => d.name)
  assert.ok(names.includes('userspace') && names.includes('good'), `found ${names}`)
  const said = Object.fromEntries(registry.problems.map((p) => [p.from, p.what]))
  assert.match(said.loops as string, /no answer within/)
  assert.match(said.throws as string, /not today/)
  assert.match(said.twice as string, /good exists already/)
  assert.match(said.old as string, /version 99/)
  await registry.backend('good')
  await registry.close()
})

test('a verb that never answers is aborted, then its process is ended, and the next verb works', {
  timeout: 120_000,
}, async () => {
  const [d] = await descriptorsOf('stuck', stub('stuck', 'check: async () => { for (;;); },'))
  const backend = (await d!.load())(context)
  await backend.status(soon())
  await assert.rejects(backend.check({} as never, second()), { code: 'BACKEND_UNAVAILABLE' })
  assert.deepEqual(await backend.status(soon()), { ok: true, problems: [] })
  await backend.close()
})

test('after a crash the new process is told of the networks again', { timeout: 120_000 }, async () => {
  const [d] = await descriptorsOf('crash', stub('crash', 'check: async () => { process.exit(3) },'))
  const backend = (await d!.load())(context)
  await backend.createNetwork({ id: 'one', name: 'one' } as NetworkSpec, soon())
  await assert.rejects(backend.check({} as never, soon()), /ended \(3\)/)
  assert.deepEqual(await backend.gc('one', [], soon()), { removed: ['one'] })
  await backend.close()
})

/** A stub that runs, when it is loaded, what a file says when its process reads it: a plug-in whose version changes. */
function changing(name: string): { hook: string; becomes: (code: string) => void; pids: () => number[] } {
  const [version, pids] = [join(dir, `${name}-version.mjs`), join(dir, `${name}.pids`)]
  const becomes = (code: string): void => writeFileSync(version, `export default () => { ${code} }`)
  becomes('')
  const hook = `
import { appendFileSync } from 'node:fs'
import onLoad from ${JSON.stringify(version)}
appendFileSync(${JSON.stringify(pids)}, process.pid + '\\n')
${stub(name, 'check: async () => { process.exit(3) },').replace('=> (ctx) => {', '=> (ctx) => { onLoad()')}`
  return { hook, becomes, pids: () => readFileSync(pids, 'utf8').trim().split('\n').map(Number) }
}
const lives = (pid: number): boolean => !['Z', undefined].includes(processStat(pid)?.state)

test('a process that is killed while it loads, and a load that fails, are final for nobody', {
  timeout: 120_000,
}, async () => {
  const p = changing('hasty')
  const [d] = await descriptorsOf('hasty', p.hook)
  // This one has read the file that does nothing.
  open.at(-1)?.close()
  p.becomes("process.kill(process.pid, 'SIGKILL')")
  const backend = (await d!.load())(context)
  await assert.rejects(backend.status(soon()), { code: 'BACKEND_UNAVAILABLE', message: /ended \(SIGKILL\)/ })
  p.becomes("throw new Error('no room')")
  await assert.rejects(backend.status(soon()), { code: 'BACKEND_UNAVAILABLE', message: /no room/ })
  p.becomes('')
  assert.deepEqual(await backend.status(soon()), { ok: true, problems: [] })
  await backend.close()
})

test('a new version that cannot be loaded leaves no process behind, and the one after it is taken up', {
  timeout: 120_000,
}, async () => {
  const p = changing('update')
  const [d] = await descriptorsOf('update', p.hook)
  const backend = (await d!.load())(context)
  await backend.createNetwork({ id: 'one', name: 'one' } as NetworkSpec, soon())
  p.becomes("throw new Error('a bad version')")
  await assert.rejects(backend.check({} as never, soon()), /ended \(3\)/)
  for (let n = 0; n < 3; n++)
    await assert.rejects(backend.status(soon()), { code: 'BACKEND_UNAVAILABLE', message: /a bad version/ })
  assert.equal(p.pids().length, 4)
  await eventually('none of them is there', () => !p.pids().some(lives))
  p.becomes('')
  assert.deepEqual(await backend.gc('one', [], soon()), { removed: ['one'] })
  assert.equal(p.pids().filter(lives).length, 1)
  await backend.close()
})

test('one backend of a plug-in that cannot be loaded again takes nothing from its neighbour', {
  timeout: 120_000,
}, async () => {
  const p = changing('left')
  const both =
    p.hook.replace('export default', 'const left =') +
    `
import right from './right.ts'
export default async () => [...(await left()), ...(await right())]`
  writeFileSync(join(plugin('pair', both), 'right.ts'), stub('right', ''))
  const [l, r] = await descriptorsOf('pair', both)
  const left = (await l!.load())(context)
  const right = (await r!.load())(context)
  await left.status(soon())
  await right.createNetwork({ id: 'one', name: 'one' } as NetworkSpec, soon())
  p.becomes("throw new Error('a bad version')")
  await assert.rejects(left.check({} as never, soon()), /ended \(3\)/)
  assert.deepEqual(await right.gc('one', [], soon()), { removed: ['one'] })
  for (let n = 0; n < 3; n++) await assert.rejects(left.status(soon()), /a bad version/)
  assert.deepEqual(await right.gc('one', [], soon()), { removed: ['one'] })
  assert.equal(p.pids().length, 2)
  await left.close()
  await right.close()
})

test('an abort reaches the verb, and what it throws comes back', { timeout: 120_000 }, async () => {
  const verbs = `attach: (r, s) => new Promise((_, reject) => s.addEventListener('abort', () => reject(new Error('undone')))),`
  const [d] = await descriptorsOf('slow', stub('slow', verbs))
  const backend = (await d!.load())(context)
  // Its process is there before the clock runs.
  await backend.status(soon())
  const controller = new AbortController()
  setTimeout(() => controller.abort(), 100)
  await assert.rejects(backend.attach({} as never, controller.signal), /undone/)
  await backend.close()
})

test('an error with a code of noid’s is that error, with its sentence and hint; any other is its own words', {
  timeout: 120_000,
}, async () => {
  const busy = `Object.assign(new Error('taken'), { code: 'PORT_BUSY', details: { proto: 'tcp', port: 80, address: '0.0.0.0' } })`
  const verbs = `
    createNetwork: async () => { throw ${busy} },
    deleteNetwork: async () => { throw Object.assign(new Error('no such file'), { code: 'ENOENT' }) },`
  const [d] = await descriptorsOf('coded', stub('coded', verbs))
  const backend = (await d!.load())(context)
  const spec = { id: 'one', name: 'one' } as NetworkSpec
  await assert.rejects(backend.createNetwork(spec, soon()), {
    code: 'PORT_BUSY',
    message: 'tcp port 80 on 0.0.0.0 is in use by another process',
    hint: /another host port/,
  })
  await assert.rejects(
    backend.deleteNetwork('one', soon()),
    (e: Error) => e.message === 'no such file' && !('code' in e),
  )
  await backend.close()
})

test('the end of an old process is nothing to the calls of a new one', { timeout: 180_000 }, async () => {
  const [d] = await descriptorsOf('again', stub('again', ''))
  for (let n = 0; n < 20; n++) {
    const backend = (await d!.load())(context)
    await backend.createNetwork({ id: `n${n}`, name: 'n' } as NetworkSpec, soon())
    // Closing ends the process; the next round starts another while this one dies.
    await backend.close()
  }
})
