/** What a VM may use of the machine, and what it may do on it: control groups and capabilities. */
import assert from 'node:assert/strict'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import type { VmHandle } from '../../src/runtimes/contract.ts'
import { checkMachine } from '../../src/runtimes/sandbox/doctor.ts'
import type { SandboxState } from '../../src/runtimes/sandbox/enter.ts'
import {
  type Controller,
  hierarchies,
  makeGroups,
  removeGroups,
  unenforced,
} from '../../src/runtimes/sandbox/limits.ts'
import { KEPT_CAPABILITIES } from '../../src/runtimes/sandbox/rights.ts'
import { eventually } from '../eventually.ts'
import { type Lab, lab, leftovers, never } from './lab.ts'

const missing = (await checkMachine()).filter((c) => !c.ok && c.required)
const skip = missing.length > 0 ? missing.map((c) => `${c.name}: ${c.detail}`).join('; ') : false
const absent = await unenforced()
/** Whether users other than root exist in a VM. */
const ranged = (await checkMachine()).every((c) => c.name !== 'more users than root in a VM' || c.ok)
const noGroups = skip || (absent === undefined ? false : `nothing enforces ${absent}`)

/** A file of the VM's group of a controller, whichever version it is of. */
function setting(vmId: string, controller: Controller, v1: string, v2: string): string {
  const h = hierarchies().find((x) => x.controllers.includes(controller))!
  return readFileSync(join(h.top, 'noid', vmId, h.version === 1 ? v1 : v2), 'utf8').trim()
}

const groupsOf = (id: string): string[] =>
  hierarchies()
    .map((h) => join(h.top, 'noid', id))
    .filter((g) => existsSync(g))

describe('the limits of a VM', { skip: noGroups, timeout: 1_200_000 }, () => {
  it('are what was asked for, and gone with it', async () => {
    await using l = await lab({ cpus: 2, memMib: 128 })
    const h = await l.runtime.prepare(l.vm, never)
    assert.match(setting(l.vm.id, 'cpu', 'cpu.cfs_quota_us', 'cpu.max'), /^200000( 100000)?$/)
    assert.match(setting(l.vm.id, 'cpu', 'cpu.shares', 'cpu.weight'), /^(2048|200)$/)
    assert.equal(setting(l.vm.id, 'memory', 'memory.limit_in_bytes', 'memory.max'), String(128 << 20))
    assert.equal(setting(l.vm.id, 'pids', 'pids.max', 'pids.max'), '4096')
    const own = (await l.run(h, ['cat', '/proc/self/cgroup', '/proc/1/cgroup'])).out
    assert.equal(own.split(`/noid/${l.vm.id}`).length - 1, groupsOf(l.vm.id).length * 2, own)
    await l.runtime.stop(l.vm, h, 1000)
    assert.deepEqual(groupsOf(l.vm.id), [])
    // Started again, it has them again.
    const again = await l.runtime.prepare(l.vm, never)
    assert.notDeepEqual(groupsOf(l.vm.id), [])
    await l.runtime.stop(l.vm, again, 1000)
    await l.runtime.destroy(l.vm)
    assert.deepEqual(groupsOf(l.vm.id), [])
  })

  it('end who takes too much memory, in this VM only', async () => {
    await using l = await lab({ memMib: 64 })
    await using other = await lab({ memMib: 64 })
    const h = await l.runtime.prepare(l.vm, never)
    const o = await other.runtime.prepare(other.vm, never)
    // tail keeps a line that never ends.
    const hog = await l.run(h, ['sh', '-c', 'head -c 300000000 /dev/zero | tail -n 1 | wc -c; echo goes on'])
    assert.match(hog.out, /goes on/)
    assert.doesNotMatch(hog.out, /300000000/)
    assert.equal(l.runtime.alive(h), true)
    assert.equal(other.runtime.alive(o), true)
    assert.equal((await l.run(h, ['echo', 'still here'])).out, 'still here\n')
  })

  it('bound a fork bomb', async () => {
    await using l = await lab()
    const h = await l.runtime.prepare(l.vm, never)
    const pids = hierarchies().find((x) => x.controllers.includes('pids'))!
    // A smaller bound for a smaller bomb: the rule is the same.
    writeFileSync(join(pids.top, 'noid', l.vm.id, 'pids.max'), '40')
    const bomb = 'i=0; while [ $i -lt 100 ]; do i=$((i+1)); sleep 30 & done'
    const r = await l.run(h, ['sh', '-c', bomb])
    assert.notEqual(r.code, 0)
    assert.match(r.err, /fork/i)
    const now = Number(setting(l.vm.id, 'pids', 'pids.current', 'pids.current'))
    assert.ok(now <= 40, `${now} processes`)
    await l.runtime.stop(l.vm, h, 1000)
    assert.deepEqual(groupsOf(l.vm.id), [])
  })

  it('hold processor time down', async () => {
    await using l = await lab({ cpus: 1 })
    const h = await l.runtime.prepare(l.vm, never)
    const cpu = hierarchies().find((x) => x.controllers.includes('cpu'))!
    const group = join(cpu.top, 'noid', l.vm.id)
    // A hundredth of a processor, which a busy machine gives too: the rule is the same.
    if (cpu.version === 1) writeFileSync(join(group, 'cpu.cfs_quota_us'), '1000')
    else writeFileSync(join(group, 'cpu.max'), '1000 100000')
    await l.run(h, ['sh', '-c', 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'])
    const stat = readFileSync(join(group, 'cpu.stat'), 'utf8')
    assert.ok(Number(/^nr_throttled (\d+)$/m.exec(stat)?.[1]) > 0, stat)
  })

  it('leave nothing when outer and init are killed, and the daemon with them', async () => {
    await using l = await lab()
    const h = await l.runtime.prepare(l.vm, never)
    for (const pid of [(h.state as SandboxState).outer, h.pid]) process.kill(pid, 'SIGKILL')
    await eventually('it is not alive', () => !l.runtime.alive(h))
    assert.notDeepEqual(groupsOf(l.vm.id), [])
    const other = await l.again()
    await other.stop(l.vm, undefined, 0)
    assert.deepEqual(groupsOf(l.vm.id), [])
    assert.deepEqual(leftovers(l.vm), [])
  })

  it('are not left behind by an image that is none', async () => {
    await using l = await lab({ image: '/no/such' })
    await assert.rejects(async () => l.runtime.prepare(l.vm, never), { code: 'IMAGE_INVALID' })
    assert.deepEqual(groupsOf(l.vm.id), [])
  })
})

describe('where control groups are found', () => {
  const v1 = `24 20 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:22 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
26 24 0:23 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
27 24 0:24 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n`

  it('version 1: each controller where it is mounted, for root', () => {
    assert.deepEqual(hierarchies(v1, '4:memory:/\n', true), [
      { version: 1, top: '/sys/fs/cgroup/cpu,cpuacct', controllers: ['cpu'] },
      { version: 1, top: '/sys/fs/cgroup/memory', controllers: ['memory'] },
    ])
    assert.deepEqual(hierarchies(v1, '4:memory:/\n', false), [])
  })

  it('version 2: from the top for root, from what was delegated for a user', () => {
    const top = mkdtempSync(join(tmpdir(), 'nt-cgroup-'))
    try {
      const make = (dir: string, procs: string) => {
        mkdirSync(join(top, dir), { recursive: true })
        writeFileSync(join(top, dir, 'cgroup.controllers'), 'cpuset cpu io memory pids\n')
        writeFileSync(join(top, dir, 'cgroup.procs'), procs)
        writeFileSync(join(top, dir, 'cgroup.subtree_control'), '')
      }
      make('', '1\n')
      make('user.slice/user@1000.service', '')
      make('user.slice/user@1000.service/app.slice', '')
      make('user.slice/user@1000.service/app.slice/run.scope', '7\n')
      const mounted = `30 24 0:25 / ${top} rw - cgroup2 cgroup2 rw,nsdelegate\n`
      const all = ['cpu', 'memory', 'pids']
      assert.deepEqual(hierarchies(mounted, '0::/\n', true), [{ version: 2, top, controllers: all }])
      // The slice above has no cgroup.procs that the user may write: it is not the user's.
      assert.deepEqual(
        hierarchies(mounted, '0::/user.slice/user@1000.service/app.slice/run.scope\n', false).map((h) => h.top),
        [join(top, 'user.slice/user@1000.service')],
      )
      assert.deepEqual(hierarchies(mounted, '0::/user.slice\n', false), [])
      assert.deepEqual(hierarchies(mounted, '0::/../outside\n', true), [])
      // Controllers that version 1 has are not asked of version 2.
      assert.deepEqual(
        hierarchies(v1 + mounted, '0::/\n', true).map((h) => h.controllers),
        [['cpu'], ['memory'], ['pids']],
      )
    } finally {
      rmSync(top, { recursive: true, force: true })
    }
  })

  it('where nothing can be had, nothing is promised and nothing left', async () => {
    const top = mkdtempSync(join(tmpdir(), 'nt-cgroup-'))
    try {
      const h = [{ version: 2, top, controllers: ['memory'] }] as const
      assert.deepEqual(makeGroups('x', { cpus: 1, memMib: 64 }, h), { procs: [], enforced: [] })
      assert.equal(await removeGroups('x', h), true)
      assert.equal(existsSync(join(top, 'noid')), false)
    } finally {
      rmSync(top, { recursive: true, force: true })
    }
  })
})

describe('the rights of a VM', { skip, timeout: 1_200_000 }, () => {
  let l: Lab
  let h: VmHandle
  // include/uapi/linux/capability.h
  const CAP = {
    chown: 0,
    net_bind_service: 10,
    net_admin: 12,
    net_raw: 13,
    sys_module: 16,
    sys_rawio: 17,
    sys_admin: 21,
    sys_boot: 22,
    sys_time: 25,
    mknod: 27,
    audit_write: 29,
    mac_admin: 33,
    syslog: 34,
    perfmon: 38,
    bpf: 39,
  }
  const setsOf = (status: string) =>
    ['CapPrm', 'CapEff', 'CapBnd', 'CapInh', 'CapAmb'].map((k) =>
      BigInt(`0x${new RegExp(`^${k}:\\s+(\\w+)`, 'm').exec(status)?.[1]}`),
    )
  const sh = (script: string) => l.run(h, ['sh', '-c', script])

  it('are those of the list, for init and for commands, and no exec brings more', async () => {
    l = await lab()
    h = await l.runtime.prepare(l.vm, never)
    for (const which of ['1', 'self']) {
      const [permitted, effective, bounding, inheritable, ambient] = setsOf(
        (await l.run(h, ['cat', `/proc/${which}/status`])).out,
      ) as [bigint, bigint, bigint, bigint, bigint]
      const bits = [...bounding.toString(2)].filter((b) => b === '1').length
      assert.equal(bits, KEPT_CAPABILITIES.length, which)
      assert.equal(permitted, bounding)
      assert.equal(effective, bounding)
      assert.equal(inheritable | ambient, 0n)
      for (const [name, n] of Object.entries(CAP))
        assert.equal(
          (bounding >> BigInt(n)) & 1n,
          (KEPT_CAPABILITIES as readonly string[]).includes(name) ? 1n : 0n,
          name,
        )
    }
    // Nor a setuid program (without a range of ids su cannot set its groups).
    if (!ranged) return
    const [, , bounding] = setsOf((await sh('exec su root -s /bin/sh -c "cat /proc/self/status"')).out)
    assert.equal(bounding, setsOf((await sh('cat /proc/1/status')).out)[2])
  })

  it('are enough for chown, su, mounts, namespaces and tracing', async () => {
    const works = async (script: string) => {
      const r = await sh(script)
      assert.equal(r.code, 0, `${script}: ${r.err}`)
    }
    await works('mount -t tmpfs t /mnt && umount /mnt && hostname web && chroot / true')
    await works('unshare --fork --pid --mount-proc --mount ps >/dev/null')
    await works('unshare --user --map-root-user --net true')
    if (ranged) await works('touch /tmp/f && chown 33:33 /tmp/f && su nobody -s /bin/sh -c true')
    await works('! command -v strace >/dev/null || strace -o /dev/null true')
    await works('! command -v ping >/dev/null || ping -c1 -W2 127.0.0.1')
    // It gives its rights up, which takes other users to become.
    if (ranged)
      await works('! command -v tcpdump >/dev/null || { timeout 1 tcpdump -i lo -c 1 >/dev/null 2>&1; [ $? = 124 ]; }')
    await works('! command -v iptables >/dev/null || { iptables -A INPUT -j ACCEPT && iptables -F INPUT; }')
  })

  it("do not reach the kernel's files when their masks are taken off", async () => {
    await sh('for m in $(grep -o " /proc/[^ ]* " /proc/mounts); do umount $m; done')
    for (const f of ['kcore', 'kmsg', 'timer_list'])
      assert.notEqual((await sh(`head -c 1 /proc/${f} > /tmp/it && [ -s /tmp/it ]`)).code, 0, f)
    assert.notEqual((await sh('echo h > /proc/sysrq-trigger')).code, 0)
    assert.notEqual((await sh('echo 1 > /proc/sys/kernel/panic')).code, 0)
    await l[Symbol.asyncDispose]()
  })
})
