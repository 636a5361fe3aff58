// The host's forwarding around CNI's plugins: back off when nobody else came, on when somebody may rely on it.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { putBack, type Witness, witness } from '../../src/plugins/cni/forwarding.ts'
import { missing } from '../e2e/lab.ts'
import { ownHost } from '../plugins/own-host.ts'

const skip = missing('iptables-save', 'iptables') || ownHost()
const SWITCH = '/proc/sys/net/ipv4/ip_forward'
const state = () => readFileSync(SWITCH, 'latin1').trim()
const ip = (...argv: string[]) => execFileSync('ip', argv)

/** What was noted before the plugins, after which they switched it on. */
async function begun(): Promise<Witness> {
  writeFileSync(SWITCH, '0')
  const w = (await witness([])).find((x) => x.path === SWITCH)
  assert.ok(w)
  assert.deepEqual(
    (await witness([w])).filter((x) => x.path === SWITCH),
    [],
    'noted once',
  )
  writeFileSync(SWITCH, '1')
  return w
}

test('nobody came: it is off again, and links of noid do not count', { skip }, async () => {
  const w = await begun()
  ip('link', 'add', 'noid77', 'type', 'bridge')
  assert.equal(await putBack(w), true)
  assert.equal(state(), '0')
  ip('link', 'delete', 'noid77')
})

test('a link that came meanwhile keeps it on, until it is gone', { skip }, async () => {
  const w = await begun()
  ip('link', 'add', 'docker7', 'type', 'bridge')
  assert.equal(await putBack(w), false)
  assert.equal(state(), '1')
  ip('link', 'delete', 'docker7')
  assert.equal(await putBack(w), true)
  assert.equal(state(), '0')
})

test('a rule that came meanwhile keeps it on', { skip }, async () => {
  const w = await begun()
  execFileSync('iptables', ['-A', 'FORWARD', '-s', '10.9.9.0/24', '-j', 'ACCEPT'])
  assert.equal(await putBack(w), false)
  assert.equal(state(), '1')
  execFileSync('iptables', ['-D', 'FORWARD', '-s', '10.9.9.0/24', '-j', 'ACCEPT'])
})

test('it was on before: it is not noted', { skip }, async () => {
  writeFileSync(SWITCH, '1')
  assert.equal(
    (await witness([])).some((x) => x.path === SWITCH),
    false,
  )
})
