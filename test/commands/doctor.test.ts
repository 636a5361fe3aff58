/** What doctor says of a machine's IPv6, from the kernel's own tables. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ipv6 } from '../../src/cli/machine.ts'

const none = '0'.repeat(32)
const address = (a: string, scope: string, link: string) => `${a} 02 40 ${scope} 80     ${link}\n`
const route = (flags: string, link: string) =>
  `${none} 00 ${none} 00 ${none} 00000400 00000001 00000000 ${flags}     ${link}\n`
const loopback = address(`${none.slice(1)}1`, '10', 'lo')
const local = address('fe80000000000000000000fffe000011', '20', 'eth0')
const global = address('20010db8000000000000000000000009', '00', 'eth0')
/** The kernel's own, in every table. */
const refused = route('00200200', 'lo')

test('IPv6 of the machine: there, without a way out, of its links alone, or not in the kernel', () => {
  assert.equal(ipv6(refused + route('00000003', 'eth0'), loopback + local + global).ok, true)
  assert.match(ipv6(refused, loopback + local + global).detail, /^no default route: VMs have IPv6 among themselves/)
  assert.match(ipv6(refused + route('00000003', 'eth0'), loopback + local).detail, /^no address but of its links/)
  assert.match(ipv6(undefined, undefined).detail, /kernel has none/)
  for (const c of [ipv6(refused, loopback), ipv6(undefined, undefined)])
    assert.deepEqual([c.ok, c.required, c.hint !== undefined], [false, false, true])
})
