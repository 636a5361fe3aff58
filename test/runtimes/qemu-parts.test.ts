// The parts of the qemu runtime that boot nothing: the command line, what machine there is, QMP, nics, ways to a switch.
import assert from 'node:assert/strict'
import { chmodSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { type CommandSpec, commandLine, kernelLine } from '../../src/runtimes/qemu/command.ts'
import { keepDoor, openDoor } from '../../src/runtimes/qemu/door.ts'
import { Machines, refinedTsc } from '../../src/runtimes/qemu/machine.ts'
import { openNic } from '../../src/runtimes/qemu/nic.ts'
import { tail } from '../../src/runtimes/qemu/process.ts'
import { Qmp } from '../../src/runtimes/qemu/qmp.ts'

const dir = mkdtempSync(join(tmpdir(), 'nt-qemu-'))
after(() => rmSync(dir, { recursive: true, force: true }))
let serial = 0
const fresh = (): string => {
  const d = join(dir, String(serial++))
  mkdirSync(d)
  return d
}

const spec: CommandSpec = {
  mark: 'guest=noid-v1',
  machine: { accel: 'tcg', type: 'microvm', tscKhz: 2_596_106 },
  cpus: 2,
  memory: { mib: 256, share: false },
  kernel: '/i/vmlinux',
  initrd: '/i/initrd',
  append: 'console=ttyS0 quiet',
  hostname: 'web',
  disk: '/v/a,b.qcow2',
  netdev: 'tap,fd=3',
  mac: '02:00:00:00:00:01',
  mtu: 1400,
  serialLog: '/v/console.log',
}
const argumentOf = (argv: readonly string[], option: string): string => argv[argv.indexOf(option) + 1] as string

describe('the command line', () => {
  test('a guest of microvm under tcg is told its TSC; one on q35 is to find it out and say so', () => {
    assert.match(kernelLine(spec), /\btsc_early_khz=2596106 tsc=reliable\b/)
    const q35 = kernelLine({ ...spec, machine: { accel: 'tcg', type: 'q35' } })
    assert.doesNotMatch(q35, /tsc/)
    assert.match(q35, /\bquiet\b.*\bloglevel=7\b/)
    assert.doesNotMatch(kernelLine({ ...spec, machine: { accel: 'kvm', type: 'microvm' } }), /tsc|loglevel/)
  })

  test('devices are in the same order on both machines: a template’s state fits its copies', () => {
    const devices = (type: 'microvm' | 'q35') =>
      commandLine({ ...spec, machine: { ...spec.machine, type } })
        .filter((_, i, all) => all[i - 1] === '-device')
        .map((d) => d.replace(/-(device|pci)\b/, ''))
    assert.deepEqual(devices('microvm'), devices('q35'))
  })

  test('commas in paths are doubled, vhost-user finds modern virtio, the MTU is told', () => {
    const argv = commandLine(spec)
    assert.match(argumentOf(argv, '-drive'), /file=\/v\/a,,b\.qcow2/)
    assert.ok(argv.includes('virtio-mmio.force-legacy=false'))
    assert.match(argv.find((a) => a.startsWith('virtio-net')) as string, /mac=02:00:00:00:00:01,host_mtu=1400$/)
  })

  test('a filter of system calls always; privileges cannot be gained, or are given up', () => {
    assert.match(argumentOf(commandLine(spec), '-sandbox'), /^on,.*spawn=deny.*elevateprivileges=deny/)
    const other = commandLine({ ...spec, runAs: '70000:70000' })
    assert.equal(argumentOf(other, '-runas'), '70000:70000')
    assert.match(argumentOf(other, '-sandbox'), /^on,.*spawn=deny/)
  })
})

describe('which machine', () => {
  /** A program in QEMU's place: its version, and then what it does as a guest. */
  const program = (d: string, trial: string): string => {
    const path = join(d, 'qemu')
    writeFileSync(path, `#!/bin/sh\n[ "$1" = --version ] && { echo "QEMU emulator version 7.2.22"; exit; }\n${trial}\n`)
    chmodSync(path, 0o755)
    return path
  }
  const machines = (d: string, trial: string, flags: string, o: { device?: string; trialMs?: number } = {}) => {
    writeFileSync(join(d, 'cpuinfo'), `processor\t: 0\nflags\t\t: fpu ${flags} sse2\n`)
    return new Machines({
      file: join(d, 'machine.json'),
      bootId: 'this-boot',
      program: program(d, trial),
      cpuinfo: join(d, 'cpuinfo'),
      device: '/dev/null',
      trialMs: 30_000,
      ...o,
    })
  }

  test('KVM after a trial that ran', async () => {
    const m = machines(fresh(), 'echo SeaBIOS; sleep 60', 'vmx')
    assert.deepEqual(await m.machine(), { accel: 'kvm', type: 'microvm' })
  })

  test('no KVM without vmx or svm, though the device is there', async () => {
    const m = machines(fresh(), 'echo SeaBIOS', 'avx')
    assert.match((await m.find()).why as string, /virtualisation/)
    assert.deepEqual(await m.machine(), { accel: 'tcg', type: 'q35' })
  })

  test('a trial that hangs is ended, one that fails is no KVM either', async () => {
    const m = machines(fresh(), 'exec sleep 600', 'svm', { trialMs: 2_000 })
    assert.match((await m.find()).why as string, /trial guest/)
    assert.equal((await machines(fresh(), 'exit 1', 'svm').find()).kvm, false)
  })

  test('a device that cannot be opened is told', async () => {
    assert.match((await machines(fresh(), ':', 'vmx', { device: '/no/kvm' }).find()).why as string, /\/no\/kvm/)
  })

  test('what was found is kept for this boot and this program', async () => {
    const d = fresh()
    const m = machines(d, 'exit 1', 'vmx')
    await m.find()
    assert.equal(await m.learn(() => 'nothing yet'), false)
    assert.equal(await m.learn(() => '[ 1.9] tsc: Refined TSC clocksource calibration: 2596.106 MHz\n'), true)
    assert.deepEqual(await m.machine(), { accel: 'tcg', type: 'microvm', tscKhz: 2_596_106 })
    const o = {
      file: join(d, 'machine.json'),
      program: join(d, 'qemu'),
      cpuinfo: join(d, 'cpuinfo'),
      device: '/dev/null',
    }
    assert.equal((await new Machines({ ...o, bootId: 'this-boot' }).machine()).tscKhz, 2_596_106)
    assert.equal((await new Machines({ ...o, bootId: 'another' }).machine()).tscKhz, undefined)
  })

  test('a program that is not there is an error', async () => {
    const m = new Machines({ file: join(fresh(), 'm'), bootId: 'b', program: '/no/qemu' })
    await assert.rejects(m.find(), /not installed/)
  })

  test('a guest’s log is not believed blindly', () => {
    assert.equal(refinedTsc('Refined TSC clocksource calibration: 0.001 MHz'), undefined)
    assert.equal(refinedTsc('Refined TSC clocksource calibration: 99999999.000 MHz'), undefined)
    assert.equal(refinedTsc(''), undefined)
  })
})

describe('QMP', () => {
  async function server(answer: (line: string, s: Socket) => void): Promise<string> {
    const path = join(fresh(), 's')
    const srv = createServer((s) => {
      s.on('error', () => {})
      s.write('{"QMP": {"version": {}, "capabilities": []}}\r\n')
      s.setEncoding('utf8').on('data', (t: string) => {
        for (const l of t.split('\n').filter(Boolean)) answer(l, s)
      })
    })
    await new Promise<void>((r) => srv.listen(path, r))
    after(() => srv.close())
    return path
  }
  const id = (line: string): number => (JSON.parse(line) as { id: number }).id

  test('answers find their commands in any order; events and halves of lines between them', async () => {
    const held: number[] = []
    const path = await server((line, s) => {
      if (line.includes('qmp_capabilities')) return void s.write(`{"return": {}, "id": ${id(line)}}\r\n`)
      held.push(id(line))
      if (held.length < 2) return
      s.write(`{"event": "RESUME"}\r\n{"return": "second", "id": ${held[1]}}\r\n{"return": "fi`)
      setTimeout(() => s.write(`rst", "id": ${held[0]}}\r\n`), 20)
    })
    const q = await Qmp.connect(path)
    const events: string[] = []
    q.on((e) => events.push(e.event))
    assert.deepEqual(await Promise.all([q.execute('a'), q.execute('b')]), ['first', 'second'])
    assert.deepEqual(events, ['RESUME'])
    q.close()
  })

  test('a refusal is told in QEMU’s words; silence, nonsense and an end reject', async () => {
    const path = await server((line, s) => {
      if (line.includes('qmp_capabilities')) s.write(`{"return": {}, "id": ${id(line)}}\r\n`)
      else if (line.includes('refused')) s.write(`{"error": {"desc": "no such thing"}, "id": ${id(line)}}\r\n`)
      else if (line.includes('nonsense')) s.write('}{\r\n')
      else if (line.includes('end')) s.destroy()
    })
    const q = await Qmp.connect(path)
    await assert.rejects(q.execute('refused'), /no such thing/)
    await assert.rejects(q.execute('silence', {}, 50), /did not answer/)
    await assert.rejects(q.execute('nonsense'), /not JSON/)
    const again = await Qmp.connect(path)
    await assert.rejects(again.execute('end'), /closed/)
  })

  test('waits for a socket that is not there yet, and no longer than it may', async () => {
    const path = join(fresh(), 'late')
    const stop = new AbortController()
    const waiting = Qmp.opening(path, stop.signal)
    setTimeout(() => stop.abort(new Error('enough')), 30)
    await assert.rejects(waiting)
  })
})

describe('nics', () => {
  test('datagrams: both paths, and what QEMU left at its own is out of the way', () => {
    const d = fresh()
    writeFileSync(join(d, 'q'), '')
    const nic = openNic({ kind: 'dgram', path: join(d, 's'), peer: join(d, 'q') }, 3, d)
    assert.equal(nic.netdev, `dgram,local.type=unix,local.path=${d}/q,remote.type=unix,remote.path=${d}/s`)
    assert.equal(statSync(join(d, 'q'), { throwIfNoEntry: false }), undefined)
  })

  test('vhost-user shares the guest’s memory and connects again', () => {
    const nic = openNic({ kind: 'vhost-user', path: '/x/s' }, 3, dir, 'switch')
    assert.equal(nic.sharedMemory, true)
    assert.match(nic.before.join(' '), /path=switch,reconnect=1/)
  })

  test('what QEMU cannot use is refused', () => {
    assert.throws(() => openNic({ kind: 'netdev', ifname: 'eth0', netns: '/x' }, 3, dir), /netdev/)
  })

  const root = process.getuid?.() === 0 ? false : 'needs root'
  test('a way to the switch for another user, also to the one that comes after it', { skip: root }, async () => {
    const d = fresh()
    const run = join(d, 'qemu', 'v1')
    mkdirSync(run, { recursive: true, mode: 0o700 })
    const path = join(d, 's')
    const bind = async () => {
      const s = createServer()
      await new Promise<void>((r) => s.listen(path, r))
      return s
    }
    const nic = { kind: 'vhost-user', path } as const
    const first = await bind()
    assert.equal(openDoor(nic, run, 70_000), 'switch')
    assert.equal(statSync(join(run, 'switch')).uid, 70_000)
    assert.equal(statSync(run).uid, 0, 'the directory stays root’s')
    first.close()
    const second = await bind()
    keepDoor(nic, run, 70_000)
    assert.equal(statSync(join(run, 'switch')).ino, statSync(path).ino)
    assert.equal(statSync(join(run, 'switch')).uid, 70_000)
    second.close()
    assert.equal(openDoor({ kind: 'dgram', path: '/no/such', peer: '/x' }, run, 70_000), undefined)
  })
})

test('the last lines of a log are text, whatever a guest prints', () => {
  const file = join(fresh(), 'log')
  writeFileSync(file, 'one\ntwo\n\x1b[2J\x1b]0;title\x07th\x00ree\r\n')
  assert.equal(tail(file, 2), 'two\n]0;titlethree')
  assert.equal(tail('/no/such/file', 2), '')
})
