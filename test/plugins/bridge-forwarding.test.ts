// Forwarding for a bridge, IPv6's on kernels that have it by link and on those that have it for all links or none; and put back.
import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { Claims } from '../../src/plugins/bridge/claims.ts'
import { forward4, forward6 } from '../../src/plugins/bridge/forwarding.ts'

function kernel(t: { after(fn: () => void): void }, switches: Record<string, string>) {
  const dir = mkdtempSync(join(tmpdir(), 'noid-forwarding-'))
  t.after(() => rmSync(dir, { recursive: true, force: true }))
  const conf = join(dir, 'conf')
  for (const [key, value] of Object.entries(switches)) {
    mkdirSync(dirname(join(conf, key)), { recursive: true })
    writeFileSync(join(conf, key), value)
  }
  const now = () =>
    Object.fromEntries(Object.keys(switches).map((key) => [key, readFileSync(join(conf, key), 'latin1').trim()]))
  const set = (key: string, value: string) => writeFileSync(join(conf, key), value)
  return { conf, now, set, claims: new Claims(join(dir, 'claims')) }
}

test('by link: the bridge and the ways out, and nothing else', (t) => {
  const was = {
    'all/force_forwarding': '0',
    'all/forwarding': '0',
    'noid0/force_forwarding': '0',
    'eth0/force_forwarding': '0',
  }
  const k = kernel(t, was)
  forward6(k.claims, 'n1', 'noid0', ['eth0'], k.conf)
  assert.deepEqual(k.now(), { ...was, 'noid0/force_forwarding': '1', 'eth0/force_forwarding': '1' })
  k.claims.releaseAll('n1')
  assert.deepEqual(k.now(), was)
})

test('all or none: a link that has its way out from router advertisements goes on listening; the last network puts all back', (t) => {
  const was = { 'all/forwarding': '0', 'eth0/accept_ra': '1', 'eth1/accept_ra': '0' }
  const k = kernel(t, was)
  forward6(k.claims, 'n1', 'noid0', ['eth0', 'eth1'], k.conf)
  forward6(k.claims, 'n2', 'noid1', ['eth0', 'eth1'], k.conf)
  const on = { 'all/forwarding': '1', 'eth0/accept_ra': '2', 'eth1/accept_ra': '0' }
  assert.deepEqual(k.now(), on)
  k.claims.releaseAll('n1')
  assert.deepEqual(k.now(), on)
  k.claims.releaseAll('n2')
  assert.deepEqual(k.now(), was)
})

for (const [family, key] of [
  ['IPv4', 'forwarding'],
  ['IPv6', 'force_forwarding'],
] as const)
  test(`${family}: somebody sets the switch of all links meanwhile: his links go on forwarding; one that was set before is put back`, (t) => {
    const was = { [`all/${key}`]: '0', [`eth0/${key}`]: '0' }
    const k = kernel(t, { ...was, ...(family === 'IPv6' && { [`noid0/${key}`]: '0' }) })
    const claim = () =>
      family === 'IPv4'
        ? forward4(k.claims, 'n1', ['eth0'], k.conf)
        : forward6(k.claims, 'n1', 'noid0', ['eth0'], k.conf)
    claim()
    assert.equal(k.now()[`eth0/${key}`], '1')
    // Docker starts.
    k.set(`all/${key}`, '1')
    k.claims.releaseAll('n1')
    assert.equal(k.now()[`eth0/${key}`], '1')
    // Forwarding is on, and this link was taken out of it by hand.
    k.set(`eth0/${key}`, '0')
    claim()
    assert.equal(k.now()[`eth0/${key}`], '1')
    k.claims.releaseAll('n1')
    assert.equal(k.now()[`eth0/${key}`], '0')
  })
