/**
 * The two queues of a guest's TAP: acknowledgments of several long streams wake the kernel's thread, which receives them beside the data plane; nothing else
 * does. What the thread did is told by how often it ran (/proc/PID/status), not by how long anything took.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { after, before, describe, test } from 'node:test'
import { eventually } from '../eventually.ts'
import { type Guest, Lab, SERVER, skipWithoutRoot } from './lab.ts'

const MIB = 1 << 20
const skip = skipWithoutRoot || (availableParallelism() > 1 ? false : 'one processor: there is one queue')

/** The kernel's threads for interfaces of that name, of whatever namespace. */
function threads(ifname: string): string[] {
  return readdirSync('/proc').filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/comm`, 'utf8').startsWith(`napi/${ifname}-`)
    } catch {
      return false
    }
  })
}

describe('the queues of a TAP', { skip }, () => {
  let lab: Lab
  let guest: Guest
  let thread = ''
  before(async () => {
    const others = new Set(threads('eth0'))
    lab = new Lab()
    await lab.start()
    guest = await lab.guest('web', 10)
    const own = threads('eth0').filter((pid) => !others.has(pid))
    assert.equal(own.length, 1)
    thread = own[0] as string
    lab.in(lab.host, 'sh', '-c', `head -c ${64 * MIB} /dev/urandom > ${lab.dir}/data`)
    lab.background(lab.host, ['socat', '-u', 'TCP-LISTEN:7000,reuseaddr,fork', `SYSTEM:sha256sum >> ${lab.dir}/sums`])
    lab.background(lab.host, ['socat', '-U', 'TCP-LISTEN:7001,reuseaddr,fork', `OPEN:${lab.dir}/data`])
    lab.background(lab.host, ['socat', 'TCP-LISTEN:7002,reuseaddr,fork', 'EXEC:cat'])
    await lab.listening(lab.host, 'tcp', 7000, 7001, 7002)
  })
  after(() => lab.close())

  const runs = (): number => {
    const text = readFileSync(`/proc/${thread}/status`, 'utf8')
    return [...text.matchAll(/ctxt_switches:\t(\d+)/g)].reduce((sum, m) => sum + Number(m[1]), 0)
  }
  const from = (script: string) => lab.in(guest.netns, 'sh', '-ec', script)
  const sum = () =>
    createHash('sha256')
      .update(readFileSync(`${lab.dir}/data`))
      .digest('hex')

  test('requests, answers and names leave the thread asleep', () => {
    const before = runs()
    for (let n = 0; n < 20; n++) assert.equal(from(`echo ask | socat -t20 - TCP:${SERVER}:7002`), 'ask\n')
    from('ping -c 5 -i 0.01 192.168.100.1; dig +tries=3 +time=10 @192.168.100.2 web.noid.internal')
    assert.equal(runs(), before)
  })

  test('several streams from the guest wake it, for their acknowledgments, and arrive whole', async () => {
    const before = runs()
    const one = `socat -u OPEN:${lab.dir}/data TCP:${SERVER}:7000`
    let streams = 0
    // They are heard within two milliseconds of each other, sooner or later.
    await eventually('the thread ran', () => {
      from(`${`${one} & `.repeat(4)} wait`)
      streams += 4
      return runs() > before
    })
    const whole = () => readFileSync(`${lab.dir}/sums`, 'utf8').split(sum()).length - 1
    await eventually('their sums', () => whole() === streams)
  })

  test('a stream to the guest leaves it asleep, and arrives whole', () => {
    const before = runs()
    assert.equal(from(`socat -u TCP:${SERVER}:7001 - | sha256sum`).split(' ')[0], sum())
    assert.equal(runs(), before)
  })

  test('both queues are there again after a data plane that was killed', async () => {
    const queues = () => /numqueues (\d+)/.exec(from('ip -d link show eth0'))?.[1]
    assert.equal(queues(), '2')
    lab.process.kill('SIGKILL')
    await eventually('nobody holds one', () => queues() === '0')
    await lab.start()
    await lab.attach(guest)
    assert.equal(queues(), '2')
    assert.equal(from(`socat -u TCP:${SERVER}:7001 - | sha256sum`).split(' ')[0], sum())
  })
})
