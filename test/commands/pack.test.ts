/**
 * What is published works where it is installed: built, packed, installed into an empty directory, run there, by the
 * Node that came along and by an older one when this machine has it.
 */
import assert from 'node:assert/strict'
import { execFile, spawnSync } from 'node:child_process'
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'

/** PATH without node_modules: npm as a stranger has it. */
const PATH = (process.env.PATH ?? '')
  .split(':')
  .filter((d) => !d.includes('node_modules'))
  .join(':')
const env: NodeJS.ProcessEnv = { ...process.env, PATH, NOID_HOST: '', NODE_TEST_CONTEXT: undefined }

const registry = spawnSync('npm', ['view', 'koffi', 'version', '--fetch-retries=0', '--fetch-timeout=5000'], {
  env,
  encoding: 'utf8',
  timeout: 20_000,
})
const skip = registry.status === 0 ? false : 'the npm registry does not answer'

interface Run {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

function run(file: string, args: readonly string[], cwd: string, more: NodeJS.ProcessEnv = {}): Promise<Run> {
  return new Promise((resolve) => {
    execFile(file, args, { cwd, env: { ...env, ...more }, timeout: 280_000 }, (e, stdout, stderr) =>
      resolve({ code: e === null ? 0 : typeof e.code === 'number' ? e.code : 1, stdout, stderr }),
    )
  })
}

describe('npm pack, npm install, noid', { skip }, () => {
  let dir = ''
  let noid = ''
  before(
    async () => {
      dir = mkdtempSync(join(tmpdir(), 'noid-pack-'))
      const { pack } = (await import('../../scripts/build.mjs' as string)) as { pack(into: string): Promise<string> }
      const tarball = await pack(dir)
      const r = await run(
        'npm',
        ['install', '--prefix', dir, '--no-audit', '--no-fund', '--prefer-offline', tarball],
        dir,
      )
      assert.equal(r.code, 0, r.stderr)
      noid = join(dir, 'node_modules', '.bin', 'noid')
    },
    { timeout: 400_000 },
  )
  after(async () => {
    if (noid !== '') await run(noid, ['daemon', 'stop'], dir, { NOID_HOME: join(dir, 'home') })
    rmSync(dir, { recursive: true, force: true })
  })

  test('--version says which Node runs it: the one that came along', { timeout: 180_000 }, async () => {
    const r = await run(noid, ['--version'], dir)
    assert.match(r.stdout, /^noid\/\d+\.\d+\.\d+ linux-\S+ node-v(2[6-9]|[3-9]\d)\./)
  })

  test('doctor looks at the machine', { timeout: 180_000 }, async () => {
    const r = await run(noid, ['doctor', '--json'], dir)
    const { checks } = JSON.parse(r.stdout) as { checks: { name: string }[] }
    assert.ok(checks.some((c) => c.name === 'kernel'))
  })

  test('what goes into guests came along as it is', () => {
    const guest = 'src/runtimes/qemu/guest'
    const here = fileURLToPath(new URL(`../../${guest}`, import.meta.url))
    const there = join(dir, 'node_modules', 'noid', 'dist', guest)
    assert.deepEqual(readdirSync(there), readdirSync(here))
    for (const f of readdirSync(here)) assert.deepEqual(readFileSync(join(there, f)), readFileSync(join(here, f)))
  })

  test('the daemon starts from the built files', { timeout: 180_000 }, async () => {
    const r = await run(noid, ['backends', 'list', '--json'], dir, { NOID_HOME: join(dir, 'home') })
    assert.equal(r.code, 0, r.stderr)
    const names = (JSON.parse(r.stdout) as { name: string }[]).map((b) => b.name)
    assert.ok(names.includes('userspace'))
  })

  const asRoot = process.getuid?.() === 0 ? false : 'needs root'
  test('quickstart works from the built files', { timeout: 300_000, skip: asRoot }, async () => {
    const r = await run(noid, ['quickstart', '--json'], dir, { NOID_HOME: join(dir, 'home') })
    assert.equal(r.code, 0, r.stdout + r.stderr)
  })

  // A package of its own, built against the packed noid, installed beside it, linked, verified, used: all that a stranger does.
  test('a stranger’s backend', { timeout: 500_000, skip: asRoot }, async () => {
    const source = join(dir, 'stranger')
    cpSync(fileURLToPath(new URL('../../examples/noid-backend-ptp', import.meta.url)), source, { recursive: true })
    const quiet = ['--no-audit', '--no-fund', '--prefer-offline']
    // Its peer, noid, is found where it was installed: in the directory above.
    const tools = await run('npm', ['install', ...quiet, '--legacy-peer-deps'], source)
    assert.equal(tools.code, 0, tools.stderr)
    const packed = await run('npm', ['pack', '--pack-destination', dir], source)
    assert.equal(packed.code, 0, packed.stdout + packed.stderr)
    const tarball = readdirSync(dir).find((f) => f.startsWith('noid-backend-ptp-')) as string
    const beside = await run('npm', ['install', '--prefix', dir, ...quiet, join(dir, tarball)], dir)
    assert.equal(beside.code, 0, beside.stderr)
    const installed = join(dir, 'node_modules', 'noid-backend-ptp')
    const more = { NOID_HOME: join(dir, 'home2'), XDG_DATA_HOME: join(dir, 'data'), HOME: dir }
    const linked = await run(noid, ['plugins', 'link', installed, '--no-install'], dir, more)
    assert.equal(linked.code, 0, linked.stdout + linked.stderr)
    // A host of its own: nothing of this machine's network is touched.
    const script = `
      umount /run/netns/* 2>/dev/null; umount /run/netns 2>/dev/null
      ip link set lo up
      ${noid} backends verify ptp --json
      ${noid} create far --network-backend ptp --json
      ${noid} exec far -- ping -n -c 1 -W 5 "$(${noid} exec far -- sh -c 'ip route show default | cut -d" " -f3')"
      ${noid} create far2 --network-backend ptp --port 8080:80
      ${noid} destroy far
      ip -o link show type veth
      ${noid} daemon stop`
    const used = await run('unshare', ['--net', '--mount', '--propagation', 'private', 'sh', '-c', script], dir, more)
    assert.match(used.stdout, /"failed": 0/, used.stdout + used.stderr)
    assert.match(used.stdout, /1 received/, used.stderr)
    assert.match(used.stderr, /has no way for this: .*CAPABILITY_MISSING/s)
    assert.doesNotMatch(used.stdout, /ptp[0-9a-f]{10}@/, 'a link was left')
  })

  test('it holds what it needs and no source', () => {
    const at = join(dir, 'node_modules', 'noid')
    const files = readdirSync(at, { recursive: true, encoding: 'utf8' }).filter((f) => !f.startsWith('node_modules'))
    assert.deepEqual(
      files.filter((f) => f.endsWith('.ts') && !f.endsWith('.d.ts')),
      [],
    )
    for (const f of ['LICENSE', 'README.md', 'oclif.manifest.json', 'docs/errors.md']) assert.ok(files.includes(f), f)
  })
})
