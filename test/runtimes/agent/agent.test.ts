/** The agent and the host's client together, the guest being this machine: streams, credit, terminals, signals, ends. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { buffer, text } from 'node:stream/consumers'
import { describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { NoidError } from '../../../src/errors.ts'
import type { ExecRequest } from '../../../src/runtimes/contract.ts'
import { type AgentClient, AgentLink } from '../../../src/runtimes/qemu/agent/client.ts'
import { WINDOW } from '../../../src/runtimes/qemu/agent/protocol.ts'
import { eventually } from '../../eventually.ts'
import { hasPerl, Port } from './port.ts'

const skip = hasPerl ? false : 'needs perl'
const root = process.getuid?.() === 0 ? false : 'needs root'

const session = (c: AgentClient, argv: string[], o: Partial<ExecRequest> = {}) =>
  c.exec({ argv, env: {}, tty: false, ...o })

async function run(c: AgentClient, argv: string[], o: Partial<ExecRequest> & { input?: string | Buffer } = {}) {
  const { input, ...request } = o
  const s = await session(c, argv, request)
  s.stdin.end(input ?? '')
  const [out, err, code] = await Promise.all([text(s.stdout), s.stderr === undefined ? '' : text(s.stderr), s.exit])
  return { out, err, code }
}

const rss = (pid: number): number => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1])
const hash = (b: Buffer): string => createHash('sha256').update(b).digest('hex')

describe('the agent', { skip, timeout: 600_000 }, () => {
  it('runs a command with its streams, code, variables and directory', async () => {
    await using p = await Port.open()
    const c = await p.connect()
    const r = await run(c, ['sh', '-c', 'cat; echo "$A $PWD"; echo bad >&2; exit 42'], {
      env: { A: 'b c' },
      cwd: '/usr',
      input: 'in:',
    })
    assert.deepEqual(r, { out: 'in:b c /usr\n', err: 'bad\n', code: 42 })
    // What is asked for is what is run, whatever is in it.
    const words = ['', 'a b', "'", '$HOME', 'ä€😀', '-n', '\n', '*']
    const echoed = await run(c, ['sh', '-c', 'for w; do printf "%s\\0" "$w"; done', 'x', ...words])
    assert.deepEqual(echoed.out.split('\0').slice(0, -1), words)
    assert.equal(p.complaints, '')
  })

  it('says of what cannot be run what a shell would', async () => {
    await using p = await Port.open()
    const c = await p.connect()
    assert.deepEqual(await run(c, ['no-such-command']), {
      out: '',
      err: 'noid: no-such-command: command not found in this VM\n',
      code: 127,
    })
    assert.equal((await run(c, ['/etc/passwd'])).code, 126)
    assert.equal((await run(c, ['/no/such'])).code, 127)
    assert.deepEqual(await run(c, ['true'], { cwd: '/no/such' }), {
      out: '',
      err: 'noid: the directory /no/such does not exist in this VM\n',
      code: 126,
    })
    await assert.rejects(session(c, ['true'], { user: 'no-such-user' }), {
      code: 'EXEC_FAILED',
      message: /it has no user "no-such-user"/,
    })
    await assert.rejects(session(c, ['x'.repeat(1 << 21)]), /longer than 1 MiB/)
    assert.equal((await run(c, ['sh', '-c', 'kill -SEGV $$'])).code, 139)
  })

  it('becomes another user, by name, number and group', { skip: root }, async () => {
    await using p = await Port.open()
    const c = await p.connect()
    const who = 'id -u; id -g; echo $HOME $USER; cat /dev/stdin; echo e > /dev/stderr'
    const as = async (user: string) => {
      const r = await run(c, ['sh', '-c', who], { user, input: 'again' })
      assert.equal(r.err, 'e\n')
      return r.out
    }
    assert.match(await as('nobody'), /^65534\n65534\n\S+ nobody\nagain$/)
    assert.match(await as('4242'), /^4242\n4242\n\/ 4242\nagain$/)
    assert.match(await as('nobody:0'), /^65534\n0\n/)
    const held = await run(c, ['sh', '-c', 'kill -0 1; cat /proc/self/oom_score_adj'], { user: 'nobody' })
    assert.match(held.out, /^0$/m)
  })

  it('keeps 100 MB each way whole, both at once', async () => {
    await using p = await Port.open()
    const c = await p.connect()
    const data = randomBytes(100 << 20)
    const s = await session(c, ['cat'])
    s.stdin.end(data)
    const back = await buffer(s.stdout)
    assert.equal(hash(back), hash(data))
    assert.equal(await s.exit, 0)
    assert.ok(rss(p.agent.pid as number) < 60_000, 'the agent holds no more than its windows')
  })

  it('is not stopped by one that stalls, nor filled by it', async () => {
    await using p = await Port.open()
    const c = await p.connect()
    const deaf = await session(c, ['sleep', '60'])
    let taken = 0
    deaf.stdin.on('drain', () => {
      taken += 1
    })
    deaf.stdin.write(Buffer.alloc(32 << 20))
    const unread = await session(c, ['cat', '/dev/zero'])
    const half = await session(c, ['sh', '-c', 'cat /dev/zero & exec cat /dev/zero >&2'])
    let errors = 0
    half.stderr?.on('data', (b: Buffer) => {
      errors += b.length
    })
    // Of one command too: stdout stands still, stderr goes on.
    await eventually('megabytes of stderr beside a stdout that nobody reads', () => errors > 8 * WINDOW)
    const many = await Promise.all(
      Array.from({ length: 30 }, (_, i) => run(c, ['sh', '-c', `echo ${i}; exit ${i}`]).then((r) => [r.out, r.code])),
    )
    assert.deepEqual(
      many,
      Array.from({ length: 30 }, (_, i) => [`${i}\n`, i]),
    )
    assert.ok(unread.stdout.readableLength <= WINDOW && half.stdout.readableLength <= WINDOW)
    assert.equal(taken, 0)
    assert.ok(rss(p.agent.pid as number) < 60_000)
    for (const s of [deaf, unread, half]) s.signal('SIGKILL')
    assert.deepEqual(await Promise.all([deaf.exit, unread.exit]), [137, 137])
  })

  it('gives a terminal, with its size, its line discipline and its foreground', async () => {
    await using p = await Port.open()
    const c = await p.connect()
    const s = await session(c, ['sh'], { tty: true, rows: 33, cols: 101, env: { PS1: '> ', ENV: '' } })
    assert.equal(s.stderr, undefined)
    let seen = ''
    s.stdout.setEncoding('utf8').on('data', (t: string) => {
      seen += t
    })
    const type = async (line: string, answer: RegExp) => {
      s.stdin.write(line)
      await eventually(`${JSON.stringify(line)} is answered by ${answer}: ${JSON.stringify(seen)}`, () =>
        answer.test(seen),
      )
    }
    await type('stty size; test -t 0 && test -t 2 && echo all-term""inals\n', /33 101\r\n.*all-terminals\r\n/s)
    s.resize(40, 120)
    await type('stty size\n', /40 120\r\n/)
    // Ctrl-C and a signal by name reach what is in front, not the shell.
    await type('sh -c \'trap "echo caught; exit" INT; echo re""ady; while :; do sleep 0.05; done\'\n', /ready/)
    await type('\x03', /caught\r\n/)
    await type('sh -c \'trap "echo told; exit" TERM; echo set""up; while :; do sleep 0.05; done\'\n', /setup/)
    s.signal('SIGTERM')
    await eventually('the signal arrives', () => /told/.test(seen))
    await type('echo still""here\n', /stillhere/)
    // The end of stdin is the end-of-file character.
    s.stdin.end()
    assert.equal(await s.exit, 0)
  })

  it('ends with its command, also when something in the background keeps the output', async () => {
    await using p = await Port.open()
    const c = await p.connect()
    const dir = mkdtempSync(join(tmpdir(), 'nt-agent-'))
    try {
      const script = `echo begun; (trap "" HUP; exec sleep 600) & echo $! > ${dir}/pid; exit 3`
      const r = await run(c, ['sh', '-c', script])
      assert.deepEqual(r, { out: 'begun\n', err: '', code: 3 })
      // Throws when it is not there any more.
      process.kill(Number(readFileSync(join(dir, 'pid'), 'utf8')), 'SIGKILL')
    } finally {
      rmSync(dir, { recursive: true })
    }
    // A slow reader is not a silent writer.
    const s = await session(c, ['head', '-c', '3000000', '/dev/zero'])
    assert.ok(await Promise.race([s.exit.then(() => false), sleep(800).then(() => true)]))
    assert.equal((await buffer(s.stdout)).length, 3_000_000)
    assert.equal(await s.exit, 0)
  })

  it('takes no stdin for a command that closed it', async () => {
    await using p = await Port.open()
    const c = await p.connect()
    const s = await session(c, ['sh', '-c', 'exec <&-; echo closed; sleep 0.5'])
    s.stdin.write(Buffer.alloc(8 << 20))
    assert.equal(await text(s.stdout), 'closed\n')
    assert.equal(await s.exit, 0)
    await eventually('stdin is over', () => s.stdin.destroyed)
  })

  it('hangs up what nobody listens to any more', async () => {
    await using p = await Port.open()
    const c = await p.connect()
    const s = await session(c, ['sh', '-c', 'echo $$; exec sleep 60'])
    const pid = Number(await line(s.stdout))
    s.stdout.destroy()
    s.stderr?.destroy()
    assert.equal(await s.exit, 129)
    await eventually('the command is gone', () => !existsSync(`/proc/${pid}`))
  })

  it('refuses more than its share of commands, and goes on', async () => {
    await using p = await Port.open()
    const c = await p.connect()
    const all = await Promise.all(Array.from({ length: 128 }, () => session(c, ['cat'])))
    await assert.rejects(session(c, ['true']), /it runs 128 commands already/)
    for (const s of all) s.stdin.end()
    assert.ok((await Promise.all(all.map((s) => s.exit))).every((code) => code === 0))
    assert.equal((await run(c, ['true'])).code, 0)
  })

  it('tells about itself', async () => {
    await using p = await Port.open()
    const c = await p.connect()
    const i = await c.info('lo')
    assert.equal(i.address, '127.0.0.1')
    assert.equal(i.hostname, readFileSync('/proc/sys/kernel/hostname', 'utf8').trim())
    assert.ok(i.uptimeMs > 0)
    assert.equal((await c.info('nosuchnic')).address, undefined)
    await assert.rejects(c.configure({ waitMs: 50, nic: 'nosuchnic' }), {
      code: 'AGENT_REFUSED',
      message: /got no address/,
    })
    await assert.rejects(c.configure({ run: ['false'] }), /false failed/)
  })
})

describe('a lost conversation', { skip, timeout: 400_000 }, () => {
  it('hangs up the old commands, and a new host starts anew at once', async () => {
    await using p = await Port.open()
    const link = new AgentLink(p.path, 'test')
    const soon = () => AbortSignal.timeout(10_000)
    const first = await link.client(soon())
    const s = await session(first, ['sh', '-c', 'echo $$; cat > /dev/null; exec sleep 60'])
    const pid = Number(await line(s.stdout))
    p.cut()
    await assert.rejects(s.exit, (e) => e instanceof NoidError && e.code === 'AGENT_LOST')
    assert.equal(first.alive, false)
    const second = await link.client(soon())
    assert.notEqual(second, first)
    assert.equal((await run(second, ['echo', 'again'])).out, 'again\n')
    await eventually('the old command is hung up', () => !existsSync(`/proc/${pid}`))
    link.close()
  })

  it('in the middle of frames, any number of times', async () => {
    await using p = await Port.open()
    for (let i = 0; i < 25; i++) {
      const c = await p.connect()
      const up = await session(c, ['sh', '-c', 'cat > /dev/null'])
      up.stdin.write(randomBytes(1 << 20))
      const down = await session(c, ['cat', '/dev/urandom'])
      down.stdout.resume()
      await sleep(i * 2)
      p.cut()
      await up.exit.catch(() => {})
      await down.exit.catch(() => {})
    }
    const c = await p.connect()
    assert.equal((await run(c, ['echo', 'whole'])).out, 'whole\n')
    await eventually('no command is left', () => childrenOf(p.agent.pid as number).length === 0)
    assert.equal(p.complaints, '')
  })

  it('shares one connection between everybody who asks at once', async () => {
    await using p = await Port.open()
    const link = new AgentLink(p.path, 'test')
    const clients = await Promise.all(Array.from({ length: 8 }, () => link.client(AbortSignal.timeout(10_000))))
    assert.equal(new Set(clients).size, 1)
    link.close()
    const nobody = new AgentLink(join(tmpdir(), 'nt-no-such-socket'), 'test')
    await assert.rejects(nobody.client(AbortSignal.timeout(100)), { code: 'AGENT_SILENT' })
  })
})

const childrenOf = (pid: number): string[] =>
  readFileSync(`/proc/${pid}/task/${pid}/children`, 'latin1').split(' ').filter(Boolean)

async function line(from: Readable): Promise<string> {
  let seen = ''
  while (!seen.includes('\n')) {
    const b: Buffer | null = from.read()
    if (b === null) await new Promise((r) => from.once('readable', r))
    else seen += b
  }
  return seen.slice(0, seen.indexOf('\n'))
}
