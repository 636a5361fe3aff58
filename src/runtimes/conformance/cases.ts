/**
 * What every runtime must do: come up, run commands as a shell would, be adopted, die visibly, leave nothing.
 *
 * Commands are those of busybox and coreutils alike. Nothing here measures time; waits are bounded so that what hangs fails.
 */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { readdirSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Vm } from './environment.ts'
import { collect, type Environment, until, within } from './environment.ts'

export const GROUPS = [
  'descriptor',
  'status',
  'life',
  'exec',
  'terminal',
  'network',
  'adopt',
  'death',
  'abort',
] as const
export type Group = (typeof GROUPS)[number]

export interface Case {
  readonly group: Group
  readonly name: string
  readonly run: (e: Environment) => Promise<void>
}

const KINDS = ['tap', 'netdev', 'tap-device', 'dgram', 'stream', 'vhost-user']
const BULK = 16 << 20

const sh = (script: string): string[] => ['sh', '-c', script]

/** Loops that a signal or a resize interrupts soon, in shells of any kind. */
const waiting = (before: string): string[] => sh(`${before}; echo ready; while :; do sleep 0.1; done`)

async function gone(e: Environment, vm: Vm): Promise<void> {
  for (let t = 0; t < 600 && e.runtime.alive(vm.handle); t++) await sleep(50)
  assert.equal(e.runtime.alive(vm.handle), false, 'alive() goes on saying yes')
}

export const cases: readonly Case[] = [
  {
    group: 'descriptor',
    name: 'name, summary and nics are as the contract says',
    async run({ descriptor: d }) {
      assert.match(d.name, /^[a-z][a-z0-9-]{0,30}$/)
      assert.ok(d.summary.length > 0 && d.summary.length <= 120, 'summary: one line')
      assert.ok(d.accepts.length > 0, 'accepts: at least one kind of nic')
      for (const kind of d.accepts) assert.ok(KINDS.includes(kind), `accepts: ${kind} is not a kind of nic`)
    },
  },
  {
    group: 'status',
    name: 'status answers; every problem has a hint',
    async run(e) {
      const s = await e.runtime.status()
      for (const p of s.problems) assert.ok(p.hint, `no hint for: ${p.what}`)
      assert.ok(s.ok, `not usable here: ${s.problems.map((p) => p.what).join('; ')}`)
    },
  },
  {
    group: 'life',
    name: 'it comes up with a handle of plain JSON, a process, an address and its name',
    async run(e) {
      const vm = await e.shared()
      assert.deepEqual(JSON.parse(JSON.stringify(vm.handle)), vm.handle, 'a handle is plain JSON')
      assert.ok(vm.handle.pid > 0)
      assert.ok(e.runtime.alive(vm.handle))
      assert.equal(vm.address, vm.attachment.addresses[0]?.split('/')[0])
      assert.equal((await e.run(vm, ['hostname'])).out.trim(), vm.spec.name)
      assert.ok(e.runtime.logFile(vm.spec).startsWith(vm.spec.dir), 'its log is in its directory')
    },
  },
  {
    group: 'exec',
    name: 'output and errors come apart, and the exit code is the command’s',
    async run(e) {
      const r = await e.run(await e.shared(), sh('echo out; echo err >&2; exit 7'))
      assert.deepEqual(r, { code: 7, out: 'out\n', err: 'err\n' })
    },
  },
  {
    group: 'exec',
    name: 'stdin arrives whole, and its end too',
    async run(e) {
      const r = await e.run(await e.shared(), sh('cat; echo end'), { input: 'one\ntwo' })
      assert.deepEqual(r, { code: 0, out: 'one\ntwoend\n', err: '' })
    },
  },
  {
    group: 'exec',
    name: 'arguments, variables, directory and user are those that were given',
    async run(e) {
      const vm = await e.shared()
      const words = ['printf', '%s|', 'a b', '$HOME', "it's", '"', '\\', '']
      assert.equal(
        (await e.run(vm, words)).out,
        words
          .slice(2)
          .map((w) => `${w}|`)
          .join(''),
      )
      assert.equal((await e.run(vm, sh('echo "$KIT"'), { env: { KIT: 'a b=c' } })).out, 'a b=c\n')
      assert.equal((await e.run(vm, ['pwd'], { cwd: '/etc' })).out, '/etc\n')
      assert.equal((await e.run(vm, ['id', '-u'])).out, '0\n', 'root, when nobody is named')
    },
  },
  {
    group: 'exec',
    name: 'an unknown command ends with 127 and a sentence, a directory that is not there with 126',
    async run(e) {
      const vm = await e.shared()
      const unknown = await e.run(vm, ['no-such-command-here'])
      assert.equal(unknown.code, 127)
      assert.match(unknown.err, /no-such-command-here/)
      assert.equal((await e.run(vm, ['true'], { cwd: '/no/such/directory' })).code, 126)
    },
  },
  {
    group: 'exec',
    name: 'a signal reaches the command, which may answer it or end by it',
    async run(e) {
      const vm = await e.shared()
      const polite = await e.exec(vm, waiting('trap "echo got it; exit 9" INT'))
      polite.stdin.end()
      const said = until(polite.stdout, /got it/, 'the trap of SIGINT')
      await until(polite.stdout, /ready/, 'the beginning of the command')
      polite.signal('SIGINT')
      await said
      assert.equal(await within('its exit', polite.exit), 9)
      const ended = await e.exec(vm, waiting(':'))
      ended.stdin.end()
      await until(ended.stdout, /ready/, 'the beginning of the command')
      ended.signal('SIGKILL')
      assert.equal(await within('its exit', ended.exit), 137)
    },
  },
  {
    group: 'exec',
    name: 'eight at once do not mix',
    async run(e) {
      const vm = await e.shared()
      const all = await Promise.all(
        Array.from({ length: 8 }, (_, i) =>
          e.run(vm, sh(`cat; sleep 0.2; echo ${i}; exit ${i}`), { input: `in ${i} ` }),
        ),
      )
      assert.deepEqual(
        all,
        Array.from({ length: 8 }, (_, i) => ({ code: i, out: `in ${i} ${i}\n`, err: '' })),
      )
    },
  },
  {
    group: 'exec',
    name: `${BULK >> 20} MiB through a pipe, both ways, without loss`,
    async run(e) {
      const s = await e.exec(await e.shared(), ['cat'])
      const [sent, received] = [createHash('sha256'), createHash('sha256')]
      let bytes = 0
      const back = new Promise<void>((resolve, reject) => {
        s.stdout.on('data', (c: Buffer) => {
          bytes += c.length
          received.update(c)
        })
        s.stdout.once('close', resolve)
        s.stdout.once('error', reject)
      })
      s.stderr?.resume()
      for (let at = 0; at < BULK; at += 1 << 20) {
        const chunk = randomBytes(1 << 20)
        sent.update(chunk)
        if (!s.stdin.write(chunk)) await within('room in its stdin', new Promise((r) => s.stdin.once('drain', r)))
      }
      s.stdin.end()
      assert.equal(await within('its exit', s.exit), 0)
      await within('the end of its output', back)
      assert.equal(bytes, BULK)
      assert.equal(received.digest('hex'), sent.digest('hex'))
    },
  },
  {
    group: 'exec',
    name: 'what a command leaves in the background does not hold its end up',
    async run(e) {
      const s = await e.exec(await e.shared(), sh('sleep 1000 & echo done'))
      s.stdin.end()
      const out = collect(s.stdout)
      s.stderr?.resume()
      assert.equal(await within('its exit', s.exit), 0)
      assert.equal(await within('the end of its output', out), 'done\n')
    },
  },
  {
    group: 'terminal',
    name: 'a terminal has the size it was given, a new one when it is resized, and one stream',
    async run(e) {
      const s = await e.exec(await e.shared(), waiting('stty size; trap "stty size" WINCH'), {
        tty: true,
        rows: 31,
        cols: 97,
      })
      assert.equal(s.stderr, undefined, 'with a terminal there is no stderr')
      // One listener for all of it: nothing between two waits is lost.
      const resized = until(s.stdout, /40 132/, 'the new size')
      await until(s.stdout, /31 97[\s\S]*ready/, 'the first size')
      s.resize(40, 132)
      await resized
      s.signal('SIGKILL')
      assert.equal(await within('its exit', s.exit), 137)
    },
  },
  {
    group: 'terminal',
    name: 'what is typed arrives, and Ctrl-C interrupts',
    async run(e) {
      const s = await e.exec(await e.shared(), sh('test -t 0 && echo tty; read x; echo "<$x>"; sleep 1000'), {
        tty: true,
      })
      const answered = until(s.stdout, /<hello>/, 'the answer')
      await until(s.stdout, /tty/, 'the terminal')
      s.stdin.write('hello\n')
      await answered
      s.stdin.write('\x03')
      assert.equal(await within('its exit', s.exit), 130)
    },
  },
  {
    group: 'network',
    name: 'its nic has the MAC, the MTU and the address, and reaches the gateway',
    async run(e) {
      const vm = await e.shared()
      const links = (await e.run(vm, ['ip', 'link', 'show', 'eth0'])).out
      assert.match(links, new RegExp(vm.attachment.mac, 'i'))
      assert.match(links, new RegExp(`mtu ${vm.attachment.mtu}\\b`))
      assert.match((await e.run(vm, ['ip', '-4', 'addr', 'show', 'eth0'])).out, new RegExp(`inet ${vm.address}/`))
      const ping = await e.run(vm, ['ping', '-c', '1', '-W', '10', e.gateway])
      assert.equal(ping.code, 0, ping.out + ping.err)
    },
  },
  {
    group: 'network',
    name: 'where there is IPv6, its nic has the address that was reserved, usable at once',
    async run(e) {
      if (e.gateway6 === undefined) return
      const vm = await e.shared()
      const reserved = vm.attachment.addresses.find((x) => x.includes(':'))
      assert.equal(vm.address6, reserved?.split('/')[0])
      const addresses = (await e.run(vm, ['ip', '-6', 'addr', 'show', 'dev', 'eth0'])).out
      const line = addresses.split('\n').find((l) => l.includes(`inet6 ${reserved} `))
      assert.ok(line !== undefined && !/tentative(?! *optimistic)|dadfailed/.test(line), addresses)
      const ping = await e.run(vm, ['ping', '-6', '-c', '1', '-W', '10', e.gateway6])
      assert.equal(ping.code, 0, ping.out + ping.err)
    },
  },
  {
    group: 'network',
    name: 'asked again, it has the same nic',
    async run(e) {
      const vm = await e.shared()
      const { address, address6 } = await e.runtime.renic(vm.spec, vm.handle, vm.attachment, e.signal())
      assert.deepEqual([address, address6], [vm.address, vm.address6])
    },
  },
  {
    group: 'adopt',
    name: 'another instance finds it by its handle, runs commands in it and stops it',
    async run(e) {
      const vm = await e.up()
      await e.again()
      assert.ok(e.runtime.alive(vm.handle))
      assert.equal((await e.run(vm, ['echo', 'still here'])).out, 'still here\n')
      await e.again()
      await e.runtime.stop(vm.spec, vm.handle, 15_000)
      assert.equal(e.runtime.alive(vm.handle), false)
      await e.runtime.stop(vm.spec, vm.handle, 0)
      await e.runtime.stop(vm.spec, undefined, 0)
      await e.down(vm)
    },
  },
  {
    group: 'adopt',
    name: 'a handle with another start time names nobody',
    async run(e) {
      const vm = await e.shared()
      assert.equal(e.runtime.alive({ ...vm.handle, startTime: '1' }), false)
    },
  },
  {
    group: 'life',
    name: 'stopped, it starts again',
    async run(e) {
      const vm = await e.up()
      await e.runtime.stop(vm.spec, vm.handle, 15_000)
      await e.detach(vm.spec.id)
      const again = await e.up(vm.spec)
      assert.equal((await e.run(again, ['hostname'])).out.trim(), vm.spec.name)
      await e.down(again)
      await e.down(vm)
    },
  },
  {
    group: 'life',
    name: 'destroyed twice, and when it never was, it leaves nothing in its directory that it made',
    async run(e) {
      const vm = await e.up()
      await e.down(vm)
      await e.runtime.destroy(vm.spec)
      assert.deepEqual(
        readdirSync(vm.spec.dir).filter((f) => !/\.(log|json)(\.\d+)?$/.test(f)),
        [],
      )
      await e.runtime.destroy(e.spec())
    },
  },
  {
    group: 'life',
    name: 'three at once',
    async run(e) {
      const all = await Promise.all([e.up(), e.up(), e.up()])
      assert.equal(new Set(all.map((v) => v.handle.pid)).size, 3)
      const names = await Promise.all(all.map((v) => e.run(v, ['hostname'])))
      assert.deepEqual(
        names.map((r) => r.out.trim()),
        all.map((v) => v.spec.name),
      )
      await Promise.all(all.map((v) => e.down(v)))
    },
  },
  {
    group: 'death',
    name: 'its process killed, it is seen dead, and commands in it are refused',
    async run(e) {
      const vm = await e.up()
      process.kill(vm.handle.pid, 'SIGKILL')
      await gone(e, vm)
      await assert.rejects(async () => e.exec(vm, ['true']))
      const obituary = await e.runtime.obituary?.(vm.spec, vm.handle)
      assert.notEqual(obituary?.orderly, true, 'a killed one did not end in order')
      await e.down(vm)
    },
  },
  {
    group: 'abort',
    name: 'a start that is aborted, wherever it was, leaves nothing once it is stopped',
    async run(e) {
      for (const after of [0, 5, 100, 700]) {
        const spec = e.spec()
        await e.runtime.provide?.(spec, e.signal(), () => {})
        const stop = new AbortController()
        const prepared = await e.runtime.prepare(spec, e.signal())
        const a = await e.attach(spec, prepared)
        const timer = setTimeout(() => stop.abort(new Error('aborted by the kit')), after)
        try {
          const { handle } = await e.runtime.start(spec, prepared, a, a.dns, stop.signal)
          assert.ok(e.runtime.alive(handle), 'it was quicker: then it is whole')
        } catch {
          assert.ok(stop.signal.aborted, 'it failed though nobody aborted it')
        }
        clearTimeout(timer)
        // The daemon may not have been told the handle.
        await e.runtime.stop(spec, prepared, 0)
        await e.detach(spec.id)
        await e.runtime.destroy(spec)
        assert.equal(e.runtime.alive(prepared), false)
      }
    },
  },
]
