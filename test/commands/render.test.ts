/** What commands print, as text and as JSON, and how they fail. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { ELSEWHERE } from '../../src/cli/not-found.ts'
import { progressView } from '../../src/cli/progress.ts'
import { portSpec, reach, tame } from '../../src/cli/text.ts'
import { BIN, type Fake, fakeDaemon, fakeVm, noid } from './fake.ts'

let fake: Fake
before(async () => {
  fake = await fakeDaemon()
})
after(() => fake.close())

test('an empty list says what to type', async () => {
  const r = await noid(fake, ['list'])
  assert.deepEqual(r, { code: 0, stdout: 'There is no VM yet. Make one with: noid create NAME\n', stderr: '' })
  assert.deepEqual(JSON.parse((await noid(fake, ['list', '--json'])).stdout), [])
})

test('create tells progress on stderr, the address and what to type next on stdout', async () => {
  const r = await noid(fake, ['create', 'web'])
  assert.equal(r.code, 0)
  assert.equal(r.stderr, '  attaching\n  made it\n')
  assert.match(r.stdout, /^web is running at 192\.168\.100\.100 on the network default \(userspace\)\n/)
  assert.match(r.stdout, /noid exec web -- ip addr show/)
})

test('an error is one sentence, its code and a hint; exit code 1', async () => {
  const r = await noid(fake, ['create', 'web'])
  assert.deepEqual(r, {
    code: 1,
    stdout: '',
    stderr:
      'noid: a VM named "web" exists already (NAME_TAKEN)\n  choose another name, or remove it with: noid destroy web\n',
  })
})

test('with --json the error goes to stdout as fields', async () => {
  const r = await noid(fake, ['info', 'nobody', '--json'])
  assert.equal(r.code, 1)
  assert.equal(r.stderr, '')
  assert.deepEqual(JSON.parse(r.stdout), {
    error: {
      code: 'VM_UNKNOWN',
      message: 'there is no VM named "nobody"',
      hint: 'noid list shows the VMs there are',
      details: { name: 'nobody' },
    },
  })
})

test('an error in the middle of progress is an error', async () => {
  const r = await noid(fake, ['start', 'web'])
  assert.equal(r.code, 1)
  assert.match(r.stderr, /did not start: it is a fake \(VM_START_FAILED\)/)
})

test('wrong usage is exit code 2, never a stack', async () => {
  for (const args of [['create'], ['list', '--bad'], ['lst'], ['create', 'a', '--cpus', 'x'], ['network', 'lst']]) {
    const r = await noid(fake, args)
    assert.equal(r.code, 2, args.join(' '))
    assert.match(r.stderr, /^noid: [^\n]+ \(INVALID_INPUT\)\n {2}[^\n]+\n$/, args.join(' '))
  }
})

test('help is told on a pipe and ends well', async () => {
  for (const args of [[], ['--help'], ['help', 'exec'], ['network'], ['create', '--help']]) {
    const r = await noid(fake, args)
    assert.equal(r.code, 0, args.join(' '))
    assert.equal(r.stderr, '', args.join(' '))
    assert.match(r.stdout, /USAGE/)
  }
})

test('an unknown command names what other tools mean by it, or the nearest', async () => {
  for (const [typed, near] of [
    [['lst'], 'did you mean: noid list'],
    [['creat', 'web'], '"creat" is not a noid command .*\\n  did you mean: noid create'],
    [['inspect', 'web'], '"inspect" is not a noid command .*\\n  did you mean: noid info'],
    [['network', 'delete', 'lab'], '"network delete" is not a noid command .*\\n  did you mean: noid network remove'],
    [['constructor'], 'noid help lists them'],
    [['netwrok', 'list'], 'did you mean: noid network list'],
    [['network', 'frobnicate'], 'noid network --help lists them'],
    [['frobnicate', 'web'], 'noid help lists them'],
  ] as const)
    assert.match((await noid(fake, typed)).stderr, new RegExp(`${near}\\n$`), typed.join(' '))
})

test('words of other tools are no commands here, and name ones that are', () => {
  const { commands } = JSON.parse(readFileSync(new URL('../../oclif.manifest.json', import.meta.url), 'utf8')) as {
    commands: Record<string, { id: string; hiddenAliases?: string[] }>
  }
  const ids = Object.values(commands).map((c) => c.id.replace(':', ' '))
  const all = new Set([...ids, ...Object.values(commands).flatMap((c) => c.hiddenAliases ?? [])])
  for (const [word, meant] of Object.entries(ELSEWHERE)) {
    assert.ok(!all.has(word), word)
    assert.ok(ids.includes(meant), meant)
  }
})

test('a silent host that was named is an error, no second daemon', async () => {
  const r = await noid(undefined, ['list', '--host', join(fake.dir, 'nobody.sock')])
  assert.equal(r.code, 1)
  assert.match(r.stderr, /DAEMON_UNREACHABLE/)
})

test('a daemon of another API version is told', async () => {
  fake.version = { api: 99, version: '9.9.9' }
  const r = await noid(fake, ['list'])
  fake.version = {}
  assert.equal(r.code, 1)
  assert.match(r.stderr, /the daemon is noid 9\.9\.9 and this command is noid 0\.1\.0 \(DAEMON_VERSION\)/)
})

test('a daemon of another version that speaks the same API is noted', async () => {
  fake.version = { version: '0.1.1' }
  const r = await noid(fake, ['list'])
  fake.version = {}
  assert.equal(r.code, 0)
  assert.match(r.stderr, /^note: the daemon is noid 0\.1\.1/)
})

test('use writes the directory’s active VM, commands take it when none is named', async () => {
  assert.equal((await noid(fake, ['info'])).code, 2)
  assert.equal((await noid(fake, ['use', 'web'])).code, 0)
  assert.equal(readFileSync(join(fake.dir, '.noid-vm'), 'utf8'), 'web\n')
  assert.equal((await noid(fake, ['current'])).stdout, 'web\n')
  assert.match((await noid(fake, ['info'])).stdout, /^Name: +web$/m)
  assert.match((await noid(fake, ['list'])).stdout, /^web \* /m)
  assert.equal((await noid(fake, ['use', 'nobody'])).code, 1)
})

test('tables are aligned, ports read as they are typed', async () => {
  fake.vms.set(
    'db',
    fakeVm('db', { ports: [{ proto: 'udp', hostAddress: '127.0.0.1', hostPort: 53, guestPort: 5353 }] }),
  )
  const r = await noid(fake, ['list'])
  const [head = '', , row = ''] = r.stdout.split('\n')
  assert.equal(head.indexOf('PORTS'), row.indexOf('127.0.0.1:53→5353/udp'))
  fake.vms.delete('db')
})

test('IPv6 has a column when anybody has it, and its addresses have brackets before a port', async () => {
  assert.doesNotMatch((await noid(fake, ['list'])).stdout, /IPV6/)
  const at = (hostAddress: string) => ({ proto: 'tcp' as const, hostAddress, hostPort: 8080, guestPort: 80 })
  fake.vms.set(
    'six',
    fakeVm('six', {
      address: null,
      address6: 'fd00:1::100',
      ports: [at('*'), at('::'), at('::1'), at('0.0.0.0')],
    }),
  )
  const r = await noid(fake, ['list'])
  const [head = '', ...rows] = r.stdout.split('\n')
  const row = rows.find((l) => l.startsWith('six')) ?? ''
  assert.equal(head.indexOf('IPV6'), row.indexOf('fd00:1::100'))
  assert.match(row, / 8080→80 \[::\]:8080→80 \[::1\]:8080→80 0\.0\.0\.0:8080→80 /)
  assert.match((await noid(fake, ['info', 'six'])).stdout, /^Address: +fd00:1::100$/m)
  assert.equal(portSpec(at('::1')), '[::1]:8080:80')
  assert.deepEqual(
    ['*', '0.0.0.0', '::', '::1', '10.0.0.7'].map((a) => reach({ ...at(a), guestPort: 22 })),
    ['localhost:8080', 'localhost:8080', '[::1]:8080', '[::1]:8080', '10.0.0.7:8080'],
  )
  fake.vms.delete('six')
})

test('network tables say so when they are empty', async () => {
  assert.match((await noid(fake, ['network', 'flows'])).stdout, /^No flow on default now/)
  assert.match((await noid(fake, ['network', 'leases'])).stdout, /^No lease on default yet/)
  assert.match((await noid(fake, ['network', 'drops'])).stdout, /^default has refused nothing/)
  fake.stats = { ...fake.stats, drops: [{ vm: 'web', reason: 'bad-checksum', count: 3, meaning: 'broken' }] }
  assert.match((await noid(fake, ['network', 'drops'])).stdout, /web +bad-checksum +3 +broken/)
})

test('logs prints text, and lines as JSON', async () => {
  assert.equal((await noid(fake, ['logs', 'web'])).stdout, 'log of web\n')
  assert.deepEqual(JSON.parse((await noid(fake, ['logs', 'web', '--json'])).stdout).lines, ['log of web'])
})

test('destroy tries each and fails at the end', async () => {
  fake.vms.set('a', fakeVm('a'))
  const r = await noid(fake, ['destroy', 'nobody', 'a'])
  assert.equal(r.code, 1)
  assert.equal(r.stdout, 'a is destroyed\n')
  assert.match(r.stderr, /VM_UNKNOWN/)
})

test('so do network remove and image remove; without a name they say what is missing', async () => {
  const r = await noid(fake, ['network', 'remove', 'nobody', 'lab', 'other'])
  assert.equal(r.code, 1)
  assert.equal(r.stdout, 'lab is removed\nother is removed\n')
  assert.match(r.stderr, /NETWORK_UNKNOWN/)
  assert.deepEqual(JSON.parse((await noid(fake, ['network', 'remove', 'lab', '--json'])).stdout), { removed: ['lab'] })
  for (const topic of ['network', 'image']) assert.equal((await noid(fake, [topic, 'remove'])).code, 2)
})

test('daemon status starts nothing', async () => {
  const home = join(fake.dir, 'home')
  const r = await noid(undefined, ['daemon', 'status'], { NOID_HOME: home, NOID_HOST: '' })
  assert.equal(r.code, 1)
  assert.match(r.stdout, /no daemon answers at/)
  assert.equal(existsSync(home), false)
})

test('what a guest printed cannot drive the terminal of its host', () => {
  assert.equal(tame('a\u001b[31mred\u001b[0m\tb\r\nc'), 'a\u001b[31mred\u001b[0m\tb\r\nc')
  assert.equal(tame('x\u001b[6ny\u001b]0;title\u0007z\u009b1A\rover'), 'x·[6ny·]0;title·z·1A·over')
})

test('who is followed ends when nobody reads any more', { timeout: 120_000 }, async () => {
  const child = spawn('sh', ['-c', `"${process.execPath}" "${BIN}" network flows --watch | head -n 1`], {
    env: { ...process.env, NOID_HOST: fake.socket },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  assert.equal(await new Promise((r) => child.on('close', r)), 0)
})

test('a full disk behind stdout is one sentence', async () => {
  const full = openSync('/dev/full', 'w')
  const child = spawn(process.execPath, [BIN, 'list'], {
    env: { ...process.env, NOID_HOST: fake.socket },
    stdio: ['ignore', full, 'pipe'],
  })
  closeSync(full)
  let said = ''
  child.stderr?.on('data', (d) => {
    said += d
  })
  assert.equal(await new Promise((r) => child.on('close', r)), 1)
  assert.match(said, /^noid: what it says cannot be written: ENOSPC[^\n]*\n$/)
})

test('a line of progress is no longer than the terminal is wide', () => {
  const written: string[] = []
  const out = { isTTY: true, columns: 30, write: (text: string) => written.push(text) > 0 }
  const view = progressView(false, out as unknown as NodeJS.WriteStream)
  view.line({ type: 'step', text: 'making the network default (192.168.100.0/24 and fd00::/64, userspace)' })
  view.line({ type: 'step', text: 'short' })
  view.end()
  const lines = written.map((t) => t.replace('\r\u001b[2K', ''))
  assert.ok(lines.every((l) => l.length < 30))
  assert.deepEqual([lines[0]?.endsWith('…'), lines[1]?.slice(2)], [true, 'short'])
})
