/**
 * Sandboxes for whoever runs this: root's as root, a user's as a user (rootless.test.ts runs it again as one).
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import type { VmHandle } from '../../src/runtimes/contract.ts'
import { checkMachine } from '../../src/runtimes/sandbox/doctor.ts'
import type { SandboxState } from '../../src/runtimes/sandbox/enter.ts'
import { childrenOf, keepOnExec, processStat } from '../../src/sys/process.ts'
import { eventually } from '../eventually.ts'
import { attachment, type Lab, lab, leftovers, MAC, namespacesOf, never, privileged } from './lab.ts'

const missing = (await checkMachine()).filter((c) => !c.ok && c.required)
const skip = missing.length > 0 ? missing.map((c) => `${c.name}: ${c.detail}`).join('; ') : false
const stateOf = (h: VmHandle) => h.state as SandboxState
const ranged = privileged || (await checkMachine()).some((c) => c.name === 'more users than root in a VM' && c.ok)
/** One that was not answered is tried again after a minute. */
const RENEWAL_MS = 180_000
const who = privileged ? 'of root' : 'of a user'

describe(`a sandbox ${who}`, { skip, timeout: 1_200_000 }, () => {
  let l: Lab
  let h: VmHandle
  before(async () => {
    l = await lab()
    h = await l.runtime.prepare(l.vm, never)
  })
  after(() => l[Symbol.asyncDispose]())
  const sh = (script: string, o = {}) => l.run(h, ['sh', '-c', script], o)
  const said = async (script: string, o = {}) => (await sh(script, o)).out.trim()

  it('is alive, with namespaces of its own', async () => {
    assert.equal(l.runtime.alive(h), true)
    assert.equal(l.runtime.alive({ ...h, startTime: '1' }), false)
    for (const ns of ['net', 'mnt', 'pid', 'uts', 'ipc', 'user'])
      assert.notEqual(
        await said(`readlink /proc/self/ns/${ns}`),
        execFileSync('readlink', [`/proc/self/ns/${ns}`], { encoding: 'utf8' }).trim(),
      )
    assert.equal(await said('hostname'), 'web')
    assert.equal(await said('id -u'), '0')
    assert.match(await said('cat /proc/1/comm'), /^sh$/)
  })

  it('is given no descriptor of the host but its log', async () => {
    const hole = openSync('/dev/null', 'r')
    keepOnExec(hole)
    await using other = await lab()
    const o = await other.runtime.prepare(other.vm, never)
    closeSync(hole)
    const opened = async (of: string) => (await other.run(o, ['ls', `/proc/${of}/fd`])).out.trim().split('\n')
    assert.deepEqual(await opened('1'), ['0', '1', '2'])
    assert.deepEqual(await opened('self'), ['0', '1', '2', '3'])
  })

  it('has files that say who it is', async () => {
    assert.equal(await said('cat /etc/hostname'), 'web')
    assert.match(await said('cat /etc/hosts'), /^127\.0\.0\.1\tlocalhost$/m)
    assert.match(await said('cat /etc/network/interfaces'), /^auto eth0\niface eth0 inet dhcp$/m)
  })

  it('runs nothing of its guest’s while the host’s root can still be reached', async () => {
    await using other = await lab()
    let o = await other.runtime.prepare(other.vm, never)
    const umount = '#!/bin/sh\nls -A /.. > /tmp/seen\nexec umount.real "$@"\n'
    const put = 'p=$(command -v umount) && cp $p $p.real && rm $p && cat > $p && chmod 755 $p'
    assert.equal((await other.run(o, ['sh', '-c', put], { input: umount })).code, 0)
    await other.runtime.stop(other.vm, o, 0)
    o = await other.runtime.prepare(other.vm, never)
    const seen = (await other.run(o, ['cat', '/tmp/seen'])).out.trim().split('\n')
    // It ran, and saw the host's programs at most.
    assert.ok(seen.includes('usr'), seen.join(' '))
    assert.deepEqual(
      seen.filter((e) => !/^(bin|sbin|lib\w*|usr|nix|gnu|proc|vm)$/.test(e)),
      [],
    )
    assert.doesNotMatch((await other.run(o, ['ls', '/..'])).out, /^vm$/m)
  })

  it("shows nothing that is anybody's on the host", async () => {
    for (const dir of ['root', 'home', 'srv', 'mnt', 'boot']) assert.equal(await said(`ls -A /${dir}`), '', dir)
    const top = (await said('ls -A /')).split('\n').sort()
    const known = /^(bin|boot|dev|etc|home|lib\w*|media|mnt|opt|proc|root|run|sbin|srv|sys|tmp|usr|var)$/
    assert.deepEqual(
      top.filter((e) => !known.test(e)),
      [],
    )
    assert.equal(await said('ls -A /tmp'), '')
    const shadow = await said('cat /etc/shadow')
    assert.ok(shadow.includes('root:*:') && !shadow.split('\n').some((x) => !/^[^:]+:\*:/.test(x)), 'passwords')
    assert.equal(await said('ls /etc/ssh/ssh_host_* /etc/machine-id 2>/dev/null'), '')
    assert.equal(await said('find /etc/ssl/private -type f 2>/dev/null'), '')
    assert.equal(await said('find /var/log -type f -newer /etc/hostname -o -name syslog -o -name auth.log'), '')
    const hostname = execFileSync('hostname', { encoding: 'utf8' }).trim()
    assert.notEqual(await said('cat /etc/hostname'), hostname)
  })

  it('has the secrets of the host nowhere', { skip: privileged ? false : 'only root can plant one' }, async () => {
    const planted = ['/etc/nt-secret', '/var/lib/nt-secret', '/opt/nt-secret']
    for (const p of planted) writeFileSync(p, 'secret', { mode: 0o600 })
    mkdirSync('/var/lib/nt-private', { mode: 0o700 })
    writeFileSync('/var/lib/nt-private/readable', 'secret', { mode: 0o644 })
    try {
      await using other = await lab()
      const o = await other.runtime.prepare(other.vm, never)
      for (const p of [...planted, '/var/lib/nt-private/readable'])
        assert.equal((await other.run(o, ['test', '-e', p])).code, 1, p)
      assert.equal((await other.run(o, ['test', '-d', '/var/lib/nt-private'])).code, 0)
      // A file in its place, removed again, does not bring it back.
      await other.run(o, ['sh', '-c', 'echo mine > /etc/nt-secret && rm /etc/nt-secret'])
      assert.equal((await other.run(o, ['test', '-e', '/etc/nt-secret'])).code, 1)
    } finally {
      for (const p of [...planted, '/var/lib/nt-private']) rmSync(p, { recursive: true, force: true })
    }
  })

  it('writes to itself and never to the host', async () => {
    const before = statSync('/usr/bin/env').mtimeMs
    assert.equal((await sh('echo x > /usr/bin/nt-new && rm /usr/bin/env && rm -rf /usr/share/doc/tar')).code, 0)
    assert.equal((await sh('test -e /usr/bin/nt-new && ! test -e /usr/bin/env')).code, 0)
    assert.equal(existsSync('/usr/bin/nt-new'), false)
    assert.equal(statSync('/usr/bin/env').mtimeMs, before)
    assert.equal((await sh('for d in etc var tmp root home run opt; do echo x > /$d/nt-file || exit 1; done')).code, 0)
    for (const d of ['etc', 'var', 'tmp', 'root', 'home', 'run', 'opt'])
      assert.equal(existsSync(`/${d}/nt-file`), false, d)
  })

  it("cannot touch the host's kernel settings or devices", async () => {
    const before = readFileSync('/proc/sys/kernel/panic', 'utf8')
    assert.notEqual((await sh('echo 77 > /proc/sys/kernel/panic')).code, 0)
    assert.notEqual(
      (await sh('echo b > /proc/sysrq-trigger')).code === 0 &&
        readFileSync('/proc/sys/kernel/panic', 'utf8') !== before,
      true,
    )
    assert.notEqual((await sh('mknod /tmp/disk b 8 0')).code, 0)
    assert.notEqual((await sh('echo 1 > /sys/kernel/uevent_seqnum')).code, 0)
    assert.equal(readFileSync('/proc/sys/kernel/panic', 'utf8'), before)
  })

  it('lets its root do what a machine does: mount, sysctl of its network, ping, iptables', async () => {
    assert.equal((await sh('mount -t tmpfs t /mnt && umount /mnt')).code, 0)
    assert.equal((await sh('echo 1 > /proc/sys/net/ipv4/ip_forward')).code, 0)
    const ping = await sh('command -v ping >/dev/null || exit 0; ping -c1 -w20 127.0.0.1')
    assert.equal(ping.code, 0, ping.err)
    const rules = await sh(
      'command -v iptables >/dev/null || exit 0; iptables -A INPUT -p tcp --dport 80 -j ACCEPT && iptables -L -n',
    )
    assert.equal(rules.code, 0, rules.err)
  })

  it('reaps orphans', async () => {
    await sh('for i in 1 2 3; do (sleep 0.1 &) ; done')
    for (let i = 0; ; i++) {
      const left = await said("ps -eo stat= | grep -c '^Z' || :")
      if (left === '0') break
      assert.ok(i < 200, `${left} zombies`)
      await new Promise((r) => setTimeout(r, 50))
    }
  })

  describe('exec', () => {
    it('keeps stdout and stderr apart and tells the exit code', async () => {
      assert.deepEqual(await sh('echo out; echo err >&2; exit 42'), { code: 42, out: 'out\n', err: 'err\n' })
      assert.equal((await l.run(h, ['true'])).code, 0)
      assert.equal((await sh('kill -9 $$')).code, 137)
      assert.equal((await sh('kill -TERM $$')).code, 143)
    })

    it('says what is wrong: an unknown command, a directory, a user', async () => {
      const unknown = await l.run(h, ['nt-no-such-command', 'x'])
      assert.equal(unknown.code, 127)
      assert.match(unknown.err, /nt-no-such-command: command not found in this VM/)
      const cwd = await l.run(h, ['true'], { cwd: '/no/such' })
      assert.equal(cwd.code, 126)
      assert.match(cwd.err, /the directory \/no\/such does not exist in this VM/)
      const plain = await l.run(h, ['/etc/hostname'])
      assert.equal(plain.code, 126)
      await assert.rejects(l.run(h, ['true'], { user: 'nt-nobody' }), {
        code: 'EXEC_FAILED',
        message: /no user "nt-nobody"/,
      })
    })

    it('gives environment and directory', async () => {
      assert.equal(
        await said('echo "$A|$B|$HOME|$USER|$HOSTNAME"', { env: { A: "a ' b", B: '$x\ny' } }),
        "a ' b|$x\ny|/root|root|web",
      )
      assert.equal(await said('pwd', { cwd: '/usr' }), '/usr')
      assert.equal(await said('pwd'), '/root')
      assert.equal(await said('echo $PATH', { env: { PATH: '/bin:/odd' } }), '/bin:/odd')
      assert.equal(await said('echo $PATH'), '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin')
      assert.equal(await said('tr "\\0" "\\n" < /proc/self/environ | grep -c NOID_ || :'), '0')
    })

    it('runs as another user of the VM', { skip: ranged ? false : 'needs a range of ids' }, async () => {
      assert.equal(await said('id -un; id -gn', { user: 'nobody' }), 'nobody\nnogroup')
      assert.equal(await said('id -u; id -g', { user: '1234:4321' }), '1234\n4321')
      assert.equal((await sh('echo x > /etc/nt', { user: 'nobody' })).code, 2)
      assert.equal(await said('echo x > /dev/stderr; echo y', { user: 'nobody' }), 'y')
    })

    it('half-closes stdin', async () => {
      assert.equal(await said('cat; echo end', { input: 'text\n' }), 'text\nend')
      assert.equal(await said('cat /dev/stdin', { input: 'again' }), 'again')
    })

    it('carries 10 MB both ways, byte for byte', async () => {
      const data = Buffer.alloc(10 << 20)
      for (let i = 0; i < data.length; i += 4) data.writeUInt32LE(Math.imul(i, 2654435761) >>> 0, i)
      const s = await l.runtime.exec(l.vm, h, { argv: ['cat'], env: {}, tty: false })
      const hash = createHash('sha256')
      s.stdout.on('data', (c) => hash.update(c))
      s.stderr?.resume()
      const ended = new Promise((r) => s.stdout.once('close', r))
      for (let at = 0; at < data.length; at += 65536)
        if (!s.stdin.write(data.subarray(at, at + 65536))) await new Promise((r) => s.stdin.once('drain', r))
      s.stdin.end()
      assert.equal(await s.exit, 0)
      await ended
      assert.equal(hash.digest('hex'), createHash('sha256').update(data).digest('hex'))
    })

    it('does not lose output to a slow reader', async () => {
      const s = await l.runtime.exec(l.vm, h, { argv: ['sh', '-c', 'head -c 300000 /dev/zero'], env: {}, tty: false })
      s.stdin.end()
      s.stderr?.resume()
      await new Promise((r) => setTimeout(r, 700))
      let n = 0
      for await (const chunk of s.stdout) {
        n += chunk.length
        if (n < 200_000) await new Promise((r) => setTimeout(r, 20))
      }
      assert.equal(await s.exit, 0)
      assert.equal(n, 300000)
    })

    it('ends its streams although something in the background holds them', async () => {
      const r = await sh('echo before; sleep 5 &')
      assert.equal(r.code, 0)
      assert.equal(r.out, 'before\n')
    })

    it('is not disturbed by a command that reads nothing', async () => {
      assert.equal((await l.run(h, ['true'], { input: 'x'.repeat(1 << 20) })).code, 0)
    })

    it('forwards signals to the command and what it started', async () => {
      const s = await l.runtime.exec(l.vm, h, {
        argv: ['sh', '-c', 'trap "echo got INT; exit 7" INT; echo ready; sleep 30 & wait'],
        env: {},
        tty: false,
      })
      let out = ''
      s.stdout.on('data', (c) => {
        out += c
      })
      s.stderr?.resume()
      await eventually('the command is ready', () => out.includes('ready'))
      s.signal('SIGINT')
      assert.equal(await s.exit, 7)
      assert.match(out, /got INT/)
      const t = await l.runtime.exec(l.vm, h, { argv: ['sleep', '30'], env: {}, tty: false })
      t.signal('SIGTERM')
      assert.equal(await t.exit, 143)
    })

    it('hangs up when its streams are dropped', async () => {
      const s = await l.runtime.exec(l.vm, h, { argv: ['sleep', '30'], env: {}, tty: false })
      s.stdout.destroy()
      s.stderr?.destroy()
      assert.equal(await s.exit, 129)
    })

    it('gives a terminal, its size, and the control characters', async () => {
      const s = await l.runtime.exec(l.vm, h, {
        argv: ['sh', '-c', 'tty; stty size; trap "stty size; exit 3" WINCH; echo ready; while :; do sleep 0.05; done'],
        env: {},
        tty: true,
        rows: 33,
        cols: 99,
      })
      assert.equal(s.stderr, undefined)
      let out = ''
      s.stdout.on('data', (c) => {
        out += c
      })
      await eventually('ready', () => out.includes('ready'))
      assert.match(out, /^\/dev\/pts\/\d+\r\n33 99\r\n/)
      s.resize(44, 111)
      assert.equal(await s.exit, 3)
      await eventually('the new size', () => out.includes('44 111'))
      const c = await l.runtime.exec(l.vm, h, { argv: ['cat'], env: {}, tty: true })
      let echoed = ''
      c.stdout.on('data', (t) => {
        echoed += t
      })
      c.stdin.write('line\r')
      // Once by the terminal, once by cat: it has the terminal now.
      await eventually('cat runs', () => echoed === 'line\r\nline\r\n')
      c.stdin.write('\x03')
      assert.equal(await c.exit, 130)
      const d = await l.runtime.exec(l.vm, h, { argv: ['cat'], env: {}, tty: true })
      d.stdout.resume()
      d.stdin.end()
      assert.equal(await d.exit, 0)
    })

    it('is a member of the VM: it ends with it', async () => {
      await using other = await lab()
      const o = await other.runtime.prepare(other.vm, never)
      const s = await other.runtime.exec(other.vm, o, {
        argv: ['sh', '-c', 'trap "" TERM; echo ready; while :; do sleep 1; done'],
        env: {},
        tty: false,
      })
      let out = ''
      s.stdout.on('data', (t) => {
        out += t
      })
      s.stderr?.resume()
      await eventually('it is deaf to TERM', () => out.includes('ready'))
      await other.runtime.stop(other.vm, o, 100)
      assert.equal(await s.exit, 137)
      await assert.rejects(async () => other.runtime.exec(other.vm, o, { argv: ['true'], env: {}, tty: false }), {
        code: 'VM_NOT_RUNNING',
      })
    })
  })
})

describe(`the life of a sandbox ${who}`, { skip, timeout: 1_200_000 }, () => {
  it('keeps its files over stop and start, and loses them with destroy', async () => {
    await using l = await lab()
    const h = await l.runtime.prepare(l.vm, never)
    await l.run(h, ['sh', '-c', 'echo kept > /root/file; echo kept > /usr/local/file; echo gone > /run/file'])
    await l.runtime.stop(l.vm, h, 2000)
    assert.equal(l.runtime.alive(h), false)
    const again = await l.runtime.prepare(l.vm, never)
    assert.equal((await l.run(again, ['cat', '/root/file', '/usr/local/file'])).out, 'kept\nkept\n')
    assert.equal((await l.run(again, ['test', '-e', '/run/file'])).code, 1)
    await l.runtime.stop(l.vm, again, 2000)
    await l.runtime.destroy(l.vm)
    assert.equal(existsSync(join(l.vm.dir, 'fs')), false)
    assert.match(l.log(), /web is up/)
    assert.match(l.log(), /web has stopped/)
  })

  it('stops in order, and hard after its grace; twice is once', async () => {
    await using l = await lab()
    const h = await l.runtime.prepare(l.vm, never)
    const ns = namespacesOf(h)
    const s = await l.runtime.exec(l.vm, h, {
      argv: ['sh', '-c', 'trap "echo bye; exit 5" TERM; echo ready; while :; do sleep 0.02; done'],
      env: {},
      tty: false,
    })
    let out = ''
    s.stdout.on('data', (c) => {
      out += c
    })
    s.stderr?.resume()
    await eventually('ready', () => out.includes('ready'))
    await l.runtime.stop(l.vm, h, 5000)
    assert.equal(await s.exit, 5)
    assert.match(out, /bye/)
    assert.deepEqual(leftovers(l.vm, ns), [])
    await l.runtime.stop(l.vm, h, 5000)
    await l.runtime.stop(l.vm, undefined, 0)
  })

  for (const victim of ['outer', 'init', 'stage'] as const)
    it(`leaves nothing when its ${victim} is killed`, async () => {
      await using l = await lab()
      let ns: string[] = []
      if (victim === 'stage') {
        for (const delay of [10, 60, 90, 120, 160]) {
          const preparing = l.runtime.prepare(l.vm, never).then(
            () => undefined,
            () => undefined,
          )
          await new Promise((r) => setTimeout(r, delay))
          for (const pid of readdirSync('/proc').filter((p) => /^\d+$/.test(p) && Number(p) !== process.pid))
            try {
              if (readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(`noid-vm=${l.vm.id}`))
                process.kill(Number(pid), 'SIGKILL')
            } catch {
              // It ended meanwhile.
            }
          await preparing
          await l.runtime.stop(l.vm, undefined, 0)
          await eventually('nothing is left', () => leftovers(l.vm).length === 0)
        }
        // What it left in the directory is repaired.
        const h = await l.runtime.prepare(l.vm, never)
        assert.equal((await l.run(h, ['cat', '/etc/hostname'])).out, 'web\n')
        return
      }
      const h = await l.runtime.prepare(l.vm, never)
      ns = namespacesOf(h)
      process.kill(victim === 'outer' ? stateOf(h).outer : h.pid, 'SIGKILL')
      if (victim === 'init') await eventually('it is not alive', () => !l.runtime.alive(h))
      await l.runtime.stop(l.vm, h, 1000)
      await eventually('nothing is left', () => leftovers(l.vm, ns).length === 0)
    })

  it('is ended when its creation is given up', async () => {
    await using l = await lab()
    const given = new AbortController()
    const preparing = l.runtime.prepare(l.vm, given.signal)
    setTimeout(() => given.abort(), 10)
    await assert.rejects(preparing, { name: 'AbortError' })
    await eventually('nothing is left', () => leftovers(l.vm).length === 0)
  })

  it('costs little: three small processes, none of them Node', async () => {
    await using l = await lab()
    const h = await l.runtime.prepare(l.vm, never)
    await eventually('init sleeps', () =>
      childrenOf(h.pid).some((p) => readFileSync(`/proc/${p}/comm`, 'utf8') === 'sleep\n'),
    )
    const outer = stateOf(h).outer
    const all = [outer, ...childrenOf(outer), ...childrenOf(h.pid)]
    assert.equal(all.length, 3)
    let kib = 0
    for (const pid of all) {
      assert.doesNotMatch(readFileSync(`/proc/${pid}/comm`, 'utf8'), /node/)
      kib += Number(/^Pss:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))?.[1])
    }
    assert.ok(kib < 4096, `${kib} KiB`)
  })

  it('is another process than one that took its number', () => {
    assert.equal(processStat(1)?.pid, 1)
    assert.equal(processStat(2 ** 22 + 1), undefined)
  })
})

describe(`the nic of a sandbox ${who}`, { skip, timeout: 1_200_000 }, () => {
  it('is configured by DHCP, and the files say so', async () => {
    await using l = await lab()
    const h = await l.runtime.prepare(l.vm, never)
    const a = await l.plug(h, { options: { mtu: 1400 }, silent: 1 })
    const { nic } = await l.runtime.start(l.vm, h, a, undefined, never)
    assert.deepEqual(nic, { address: '192.168.77.100', leaseMs: 3_600_000 })
    const shown = (await l.run(h, ['sh', '-c', 'ip addr show eth0; ip route; cat /etc/resolv.conf /etc/hosts'])).out
    assert.match(shown, /mtu 1400/)
    assert.match(shown, /inet 192\.168\.77\.100\/24 brd 192\.168\.77\.255/)
    assert.match(shown, /^default via 192\.168\.77\.1 dev eth0/m)
    assert.match(shown, /^nameserver 192\.168\.77\.2\nsearch noid\.internal$/m)
    assert.match(shown, /^192\.168\.77\.100\tweb\.noid\.internal web$/m)
    assert.match(l.log(), /eth0 has 192\.168\.77\.100\/24 for 3600 s, from 192\.168\.77\.2/)
  })

  const SIX = '192.168.77.100/24 fd77::100/64'.split(' ')

  it('has both families: an address by DHCPv6, one by SLAAC, the default route by the router', async () => {
    await using l = await lab()
    const h = await l.runtime.prepare(l.vm, never)
    const a = { ...(await l.plug(h, { ipv6: { silent: 1, advertises: true } })), addresses: SIX }
    const { nic } = await l.runtime.start(l.vm, h, a, undefined, never)
    assert.deepEqual(nic, { address: '192.168.77.100', address6: 'fd77::100', leaseMs: 3_600_000 })
    // Beside IPv4 the start waits for a router only for a while; the kernel goes on asking for one.
    await eventually('a router, and an address by it', async () => {
      const { out } = await l.run(h, ['sh', '-c', 'ip -6 addr show eth0; ip -6 route'])
      return /^default via fe80::1 dev eth0/m.test(out) && /scope global [^\n]*dynamic/.test(out)
    })
    const files = 'cat /etc/resolv.conf /etc/hosts /etc/network/interfaces'
    const shown = (await l.run(h, ['sh', '-c', `ip -6 addr show; ip -6 route; ip route; ${files}`])).out
    assert.match(shown, /inet6 fd77::100\/64 scope global nodad/)
    assert.match(shown, /inet6 fd77::ff:fe00:11\/64 scope global [^\n]*dynamic/)
    assert.match(shown, /inet6 ::1\/128 scope host/)
    assert.match(shown, /^default via fe80::1 dev eth0/m)
    assert.match(shown, /^default via 192\.168\.77\.1 dev eth0/m)
    assert.match(shown, /^nameserver 192\.168\.77\.2\nnameserver fd77::2\nsearch noid\.internal$/m)
    assert.match(shown, /^192\.168\.77\.100\tweb\.noid\.internal web\nfd77::100\tweb\.noid\.internal web$/m)
    assert.match(shown, /^iface eth0 inet dhcp\niface eth0 inet6 dhcp\n {4}accept_ra 1/m)
    assert.match(l.log(), /eth0 has fd77::100\/64 for 3600 s, from DHCPv6/)
    // The nic is made again and the network has another mind; what was is gone, in the files too.
    await l.run(h, ['ip', 'link', 'delete', 'eth0'])
    const other = { ...(await l.plug(h, { ipv6: { address: 'fd77::101', refuse: 1 } })), addresses: SIX }
    assert.equal((await l.runtime.renic(l.vm, h, other, never)).address6, 'fd77::101')
    const again = (await l.run(h, ['sh', '-c', 'ip -6 addr show; cat /etc/hosts'])).out
    assert.match(again, /fd77::101\tweb/)
    assert.doesNotMatch(again, /fd77::100/)
  })

  it('may have IPv6 alone, and asks for no IPv4 then', async () => {
    await using l = await lab()
    const h = await l.runtime.prepare(l.vm, never)
    const a = { ...(await l.plug(h, { silent: 1000, ipv6: {} })), addresses: ['fd77::100/64'] }
    const { nic } = await l.runtime.start(l.vm, h, a, undefined, never)
    assert.deepEqual(nic, { address6: 'fd77::100', leaseMs: 3_600_000 })
    const shown = (await l.run(h, ['sh', '-c', 'ip -o -4 addr show eth0; cat /etc/resolv.conf /etc/hosts'])).out
    assert.doesNotMatch(shown, /192\.168/)
    assert.match(shown, /^nameserver fd77::2$/m)
    assert.match(shown, /^fd77::100\tweb\.noid\.internal web$/m)
    assert.doesNotMatch((await l.run(h, ['cat', '/etc/network/interfaces'])).out, /inet dhcp/)
  })

  it('starts with the address that is reserved where IPv4 is there and nobody speaks IPv6, and says so', async () => {
    await using l = await lab()
    const h = await l.runtime.prepare(l.vm, never)
    const a = { ...(await l.plug(h, {})), addresses: SIX }
    const dns = { servers: ['192.168.77.2', 'fd77::2'], search: ['noid.internal'] }
    const { nic } = await l.runtime.start(l.vm, h, a, dns, never)
    assert.deepEqual(nic, { address: '192.168.77.100', address6: 'fd77::100', leaseMs: 3_600_000 })
    assert.match((await l.run(h, ['cat', '/etc/resolv.conf'])).out, /^nameserver 192\.168\.77\.2\nnameserver fd77::2$/m)
    assert.match(l.log(), /no DHCPv6 server answered/)
    assert.match(l.log(), /no router advertisement/)
  })

  it('renews both leases, and IPv6 alone', async () => {
    for (const addresses of [SIX, SIX.slice(1)]) {
      await using l = await lab()
      const h = await l.runtime.prepare(l.vm, never)
      await l.runtime.start(l.vm, h, { ...(await l.plug(h, { ipv6: {} })), addresses }, undefined, never)
      const file = join(l.vm.dir, 'lease.json')
      const kept = JSON.parse(readFileSync(file, 'utf8'))
      kept.ipv6.lease.boundAt -= 1_801_000
      writeFileSync(file, JSON.stringify(kept))
      const other = await l.again()
      assert.equal(other.alive(h), true)
      const now = () => JSON.parse(readFileSync(file, 'utf8'))
      await eventually(
        'it is renewed',
        () => now().ipv6.lease.boundAt > kept.ipv6.lease.boundAt + 1_000_000,
        RENEWAL_MS,
      )
      assert.equal(now().ipv6.lease.address, 'fd77::100')
      assert.equal(now().lease?.address, addresses.length === 1 ? undefined : '192.168.77.100')
      await other.stop(l.vm, h, 1000)
    }
  })

  it('takes classless routes, and another address after NAK', async () => {
    await using l = await lab()
    const h = await l.runtime.prepare(l.vm, never)
    const classlessRoutes = [
      { to: '0.0.0.0/0', via: '192.168.77.9' },
      { to: '10.9.0.0/16', via: '192.168.77.3' },
      { to: '10.8.0.0/16', via: '0.0.0.0' },
    ]
    await l.runtime.start(l.vm, h, await l.plug(h, { options: { classlessRoutes } }), undefined, never)
    const routes = (await l.run(h, ['ip', 'route'])).out
    assert.match(routes, /^default via 192\.168\.77\.9 dev eth0/m)
    assert.match(routes, /^10\.9\.0\.0\/16 via 192\.168\.77\.3 dev eth0/m)
    assert.match(routes, /^10\.8\.0\.0\/16 dev eth0/m)
    // The device is made again, and the network has another mind.
    await l.run(h, ['ip', 'link', 'delete', 'eth0'])
    const a = await l.plug(h, { address: '192.168.77.101', nak: 1 })
    const nic = await l.runtime.renic(l.vm, h, a, never)
    assert.equal(nic.address, '192.168.77.101')
    const shown = (await l.run(h, ['sh', '-c', 'ip -o -4 addr show eth0; cat /etc/hosts'])).out
    assert.match(shown, /192\.168\.77\.101\/24/)
    assert.doesNotMatch(shown, /192\.168\.77\.100/)
  })

  it('renews its lease, also under a daemon that was started again', async () => {
    await using l = await lab()
    const h = await l.runtime.prepare(l.vm, never)
    await l.runtime.start(l.vm, h, await l.plug(h), undefined, never)
    const file = join(l.vm.dir, 'lease.json')
    const kept = JSON.parse(readFileSync(file, 'utf8'))
    // Half of it is over, and the VM's firewall lets nothing in.
    kept.lease.boundAt -= 1_801_000
    writeFileSync(file, JSON.stringify(kept))
    await l.run(h, ['sh', '-c', 'command -v iptables && iptables -A INPUT -j DROP && iptables -A OUTPUT -j DROP'])
    const other = await l.again()
    assert.equal(other.alive(h), true)
    await eventually(
      'it is renewed',
      () => JSON.parse(readFileSync(file, 'utf8')).lease.boundAt > kept.lease.boundAt + 1_000_000,
      RENEWAL_MS,
    )
    await other.stop(l.vm, h, 1000)
  })

  it('is only described when the network configures it', async () => {
    await using l = await lab()
    const h = await l.runtime.prepare(l.vm, never)
    const a = attachment(h, { configuredBy: 'backend', addresses: ['10.1.2.3/24'] })
    const dns = { servers: ['10.1.2.1'], search: ['example.org'] }
    const { nic } = await l.runtime.start(l.vm, h, a, dns, never)
    assert.deepEqual(nic, { address: '10.1.2.3', leaseMs: null })
    assert.match(
      (await l.run(h, ['cat', '/etc/resolv.conf', '/etc/hosts'])).out,
      /nameserver 10\.1\.2\.1[\s\S]*10\.1\.2\.3\tweb\.example\.org web/,
    )
  })

  it('says who did not answer, and what is not there', async () => {
    await using l = await lab()
    const h = await l.runtime.prepare(l.vm, never)
    await assert.rejects(l.runtime.start(l.vm, h, attachment(h), undefined, never), {
      code: 'VM_START_FAILED',
      message: /eth0/,
    })
    const wrong = { ...(await l.plug(h)), mac: '02:00:00:00:00:99' }
    await assert.rejects(l.runtime.start(l.vm, h, wrong, undefined, never), { message: new RegExp(MAC) })
    const given = new AbortController()
    const a = await l.plug(h, { silent: 1000 })
    const starting = l.runtime.start(l.vm, h, a, undefined, given.signal)
    setTimeout(() => given.abort(), 200)
    await assert.rejects(starting, { name: 'AbortError' })
  })
})

describe(`an image for a sandbox ${who}`, { skip, timeout: 1_200_000 }, () => {
  const busybox = ['/bin/busybox', '/usr/bin/busybox'].find((p) => existsSync(p))
  const noBusybox = busybox === undefined ? 'needs busybox' : false
  const imageDir = (): string => {
    const dir = mkdtempSync(join(tmpdir(), 'nt-image-'))
    execFileSync(
      'sh',
      [
        '-ec',
        `mkdir -p bin etc usr/bin tmp; cp ${busybox} bin/busybox; for a in $(bin/busybox --list); do [ -e bin/$a ] || ln -s busybox bin/$a; done; echo root:x:0:0:root:/:/bin/sh > etc/passwd; echo root:x:0: > etc/group; echo image > etc/nt-image; chmod 755 .`,
      ],
      { cwd: dir },
    )
    return dir
  }
  const dynamic =
    busybox !== undefined &&
    /dynamically/.test(
      (() => {
        try {
          return execFileSync('sh', ['-c', `ldd ${busybox} 2>/dev/null && echo dynamically || :`], { encoding: 'utf8' })
        } catch {
          return ''
        }
      })(),
    )
  const unusable = noBusybox || (dynamic ? 'needs a static busybox' : false)

  for (const kind of ['directory', 'archive'] as const)
    it(`may be ${kind === 'directory' ? 'a directory' : 'an archive'}`, { skip: unusable }, async () => {
      const dir = imageDir()
      const tar = `${dir}.tar.gz`
      execFileSync('tar', ['-C', dir, '-czf', tar, '.'])
      try {
        await using l = await lab({ image: kind === 'directory' ? dir : tar })
        const h = await l.runtime.prepare(l.vm, never)
        assert.equal((await l.run(h, ['cat', '/etc/nt-image', '/etc/hostname'])).out, 'image\nweb\n')
        assert.equal(
          (await l.run(h, ['sh', '-c', 'echo x > /etc/nt-image; echo x > /nt-new; cat /etc/nt-image'])).out,
          'x\n',
        )
        const { nic } = await l.runtime.start(l.vm, h, await l.plug(h), undefined, never)
        assert.equal(nic.address, '192.168.77.100')
        assert.match((await l.run(h, ['cat', '/etc/resolv.conf'])).out, /192\.168\.77\.2/)
        assert.equal(readFileSync(join(dir, 'etc/nt-image'), 'utf8'), 'image\n')
        assert.equal(existsSync(join(dir, 'nt-new')), false)
        await l.runtime.stop(l.vm, h, 1000)
        assert.equal((await l.run(await l.runtime.prepare(l.vm, never), ['cat', '/nt-new'])).out, 'x\n')
      } finally {
        rmSync(dir, { recursive: true, force: true })
        rmSync(tar, { force: true })
      }
    })

  it('that is none is refused', async () => {
    for (const image of ['/no/such', '/dev/null', '/etc']) {
      await using l = await lab({ image })
      await assert.rejects(async () => l.runtime.prepare(l.vm, never), { code: 'IMAGE_INVALID' }, image)
    }
    const dir = mkdtempSync(join(tmpdir(), 'nt-image-'))
    const broken = join(dir, 'x.tar')
    writeFileSync(broken, 'not an archive')
    try {
      await using l = await lab({ image: broken })
      await assert.rejects(l.runtime.prepare(l.vm, never), { code: 'IMAGE_INVALID' })
      assert.deepEqual(leftovers(l.vm), [])
    } finally {
      rmSync(dir, { recursive: true, force: true })
    }
  })
})
