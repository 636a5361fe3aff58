/** `noid capture` as a person uses it: lines, a file, a pipe into tshark that reads while the capture runs; as root and as an ordinary user. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { runsAs } from '../users.ts'
import { eventually, Lab, missing, type Place, repository, type Said } from './lab.ts'

const NOID = join(repository, 'bin/noid.mjs')
const SLOW = 90_000

/** The command line as one user of the laboratory's host. */
class Cli {
  readonly #host: Place
  readonly #home: string
  readonly #as: readonly string[]

  constructor(host: Place, home: string, as: readonly string[]) {
    this.#host = host
    this.#home = home
    this.#as = as
  }
  get env(): NodeJS.ProcessEnv {
    return {
      ...process.env,
      NOID_HOME: this.#home,
      HOME: this.#home,
      NODE_TEST_CONTEXT: undefined,
      NODE_OPTIONS: undefined,
    }
  }
  argv(args: readonly string[]): string[] {
    return [...this.#as, process.execPath, NOID, ...args]
  }
  run(...args: string[]): Promise<Said> {
    return this.#host.run(this.argv(args), { timeoutMs: SLOW, env: this.env })
  }
  async noid(...args: string[]): Promise<string> {
    const r = await this.run(...args)
    assert.equal(r.code, 0, `noid ${args.join(' ')}: ${r.all}`)
    return r.stdout
  }
  /** Runs beside us; what it has printed so far. */
  start(argv: readonly string[]) {
    return this.#host.hear(argv, { env: this.env })
  }
}

const NOBODY = 65_534

for (const who of ['root', 'an ordinary user'])
  describe(`noid capture as ${who}`, {
    skip:
      missing('tshark', 'ping', 'nc', 'setpriv', 'useradd', 'newuidmap') || (who === 'root' ? false : runsAs(NOBODY)),
    timeout: 500_000,
  }, () => {
    let lab: Lab
    let cli: Cli

    before(async () => {
      lab = await Lab.create()
      if (who === 'root') {
        const home = join(lab.dir, 'root')
        mkdirSync(home)
        cli = new Cli(lab.host, home, [])
      } else {
        const { name, home } = lab.user()
        cli = new Cli(lab.host, home, ['setpriv', '--reuid', name, '--regid', name, '--init-groups'])
      }
      await lab.host.sh('echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range')
      await cli.noid('create', 'web')
      await cli.noid('create', 'db')
    })
    after(async () => {
      await cli?.run('destroy', '--all').catch(() => {})
      await cli?.run('daemon', 'stop').catch(() => {})
      await lab?.remove()
    })
    // Names lead to either family; what is looked for here is ICMP.
    const ping = (to: string, wait = 30) => cli.run('exec', 'web', '--', 'ping', '-4', '-c1', `-W${wait}`, to)

    test('tshark reads it live: both ways, names of VMs, refused frames with their reason', async () => {
      const fields = ['frame.interface_name', 'frame.packet_flags_direction', 'icmp.type', 'frame.comment']
      const tshark = `tshark -l -r - -Y icmp -T fields -E separator='|' ${fields.map((f) => `-e ${f}`).join(' ')}`
      const noid = cli.argv(['capture', 'default', '-w', '-']).join(' ')
      const { child, said } = cli.start(['sh', '-c', `${noid} | ${tshark}`])
      await eventually('it captures', () => said.err.includes('capturing default'))
      await ping('db')
      await ping('169.254.7.7', 1)
      const text = await eventually('tshark shows it', () => /deny-link-local/.test(said.out) && said.out)
      const rows = String(text)
        .split('\n')
        .map((l) => l.replaceAll('0x0000000', ''))
      assert.deepEqual(rows.slice(0, 4), ['web|1|8|', 'db|2|8|', 'db|1|0|', 'web|2|0|'])
      assert.match(rows[4] as string, /^web\|1\|8\|deny-link-local: refused/)
      child.kill('SIGKILL')
    })

    test('a file, ended by Ctrl-C: whole, counted, for its owner alone', async () => {
      const file = join(lab.dir, who === 'root' ? 'root' : 'user', 'x.pcapng')
      const { child, said } = cli.start(cli.argv(['capture', 'web', '-w', file]))
      await eventually('it captures', () => said.err.includes('capturing web'))
      assert.equal((await ping('8.8.8.8')).code, 0)
      // Not a number of bytes: what else a VM says at this time differs.
      await eventually('it is written', () => readFileSync(file).includes(Buffer.from([8, 8, 8, 8])))
      child.kill('SIGINT')
      const [code] = await once(child, 'exit')
      assert.equal(code, 0, said.err)
      const [, frames] = /(\d+) frames captured, 0 missed, .* in /.exec(said.err) ?? assert.fail(said.err)
      const r = await lab.host.run(['tshark', '-r', file, '-T', 'fields', '-e', 'frame.number', '-e', 'ip.dst'])
      assert.equal(r.code, 0, r.stderr)
      assert.equal(r.stdout.trim().split('\n').length, Number(frames))
      assert.match(r.stdout, /8\.8\.8\.8/)
      assert.equal((await lab.host.sh(`stat -c %a ${file}`)).trim(), '600')
    })

    test('lines for people: who, what, why not; --count ends it', async () => {
      const { child, said } = cli.start(cli.argv(['capture', 'web', '--count', '3']))
      const ended = once(child, 'exit')
      const pinging = (async () => {
        while (child.exitCode === null && child.signalCode === null) await ping('169.254.7.7', 1)
      })()
      const [code] = await ended
      await pinging
      assert.equal(code, 0, said.err)
      const lines = said.out.trim().split('\n')
      assert.equal(lines.length, 3)
      assert.match(
        said.out,
        /^\d\d:\d\d:\d\d\.\d{6} {2}web → {2}192\.168\.100\.\d+ > 169\.254\.7\.7 ping \d+ {2}\(98\) {2}✗ deny-link-local: /m,
      )
      assert.match(said.err, /3 frames captured, 0 missed/)
    })

    test('a pipe that nobody reads: the traffic goes on, and Ctrl-C tells what was missed', async () => {
      const noid = cli.argv(['capture', 'web', '-w', '-']).join(' ')
      const { child, said } = cli.start(['sh', '-c', `${noid} | { sleep 1000; }`])
      await eventually('it captures', () => said.err.includes('capturing web'))
      cli.start(cli.argv(['exec', 'db', '--', 'sh', '-c', 'nc -l -p 7000 >/dev/null']))
      const sent = await eventually(
        'web sends 64 MiB to db',
        async () =>
          (await cli.run('exec', 'web', '--', 'sh', '-c', 'head -c 67108864 /dev/zero | nc -N -w 20 db 7000')).code ===
          0,
        120_000,
      )
      assert.ok(sent)
      const capture = lab.processes().find((p) => p.argv.startsWith(process.execPath) && p.argv.includes('capture web'))
      process.kill(capture?.pid as number, 'SIGINT')
      await eventually('it ends', () => /captured, \d+ missed/.test(said.err))
      assert.match(said.err, /captured, [1-9]\d* missed/)
      child.kill('SIGKILL')
    })

    test('a reader that leaves has what it wanted: nothing was missed', async () => {
      const noid = cli.argv(['capture', 'web']).join(' ')
      const { child, said } = cli.start(['sh', '-c', `${noid} | head -n 1`])
      const ended = once(child, 'exit')
      await eventually('it captures', () => said.err.includes('capturing web'))
      while (child.exitCode === null && child.signalCode === null) await ping('db', 1)
      await ended
      await eventually('it tells how many', () => /captured, \d+ missed/.test(said.err))
      assert.match(said.err, /captured, 0 missed/)
      assert.doesNotMatch(said.err, /slower/)
    })

    test('the daemon dies: the capture ends with an error that says so, the VM goes on', async () => {
      const { child, said } = cli.start(cli.argv(['capture', 'web']))
      const ended = once(child, 'exit')
      await eventually('it captures', () => said.err.includes('capturing web'))
      process.kill(JSON.parse(await cli.noid('daemon', 'status', '--json')).version.pid, 'SIGKILL')
      const [code] = await ended
      assert.equal(code, 1)
      assert.match(said.err, /CAPTURE_INTERRUPTED/)
      const r = await ping('db')
      assert.equal(r.code, 0, r.all)
    })

    test('the VM stops: its capture ends, and says so', async () => {
      const { child, said } = cli.start(cli.argv(['capture', 'db', '-w', '-']))
      const ended = once(child, 'exit')
      await eventually('it captures', () => said.err.includes('capturing db'))
      await cli.noid('stop', 'db')
      const [code] = await ended
      assert.equal(code, 0)
      assert.match(said.err, /the capture has ended/)
      assert.match((await cli.run('capture', 'db')).all, /VM_NOT_RUNNING/)
    })

    test('nobody of that name', async () => {
      const r = await cli.run('capture', 'nobody')
      assert.equal(r.code, 2, r.all)
      assert.match(r.all, /no VM and no network named "nobody"/)
    })
  })
