/** The parts of the sandbox runtime that only compute. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { newVmId } from '../../src/daemon/control.ts'
import { runtimes } from '../../src/runtimes/index.ts'
import { hosts, interfaces, lockedGshadow, lockedShadow, resolvConf } from '../../src/runtimes/sandbox/files.ts'
import { rootBase, rootMap, subordinate } from '../../src/runtimes/sandbox/identity.ts'
import { overlayPath, stageScript } from '../../src/runtimes/sandbox/script.ts'
import { lockedFlags, readMounts, systemMounts } from '../../src/runtimes/sandbox/stage/mountinfo.ts'
import { findUser } from '../../src/runtimes/sandbox/users.ts'

describe('identity of a VM', () => {
  it('is the same for the same VM, and in the range for containers', () => {
    fc.assert(
      fc.property(fc.string(), (id) => {
        const base = rootBase(id)
        assert.equal(base, rootBase(id))
        assert.equal(base % 65536, 0)
        assert.ok(base >= 0x00080000 && base + 65535 <= 0x6fffffff)
        assert.deepEqual(rootMap(id).uids, [[0, base, 65536]])
      }),
    )
  })

  it('is another for another VM, whatever runtime it has: the daemon chooses its id by that', () => {
    const usersOf = runtimes.filter((r) => r.foreign !== true).map((r) => r.usersOf)
    assert.deepEqual(
      usersOf.map((f) => f?.('v1')),
      usersOf.map(() => rootBase('v1')),
    )
    const ids: string[] = []
    while (ids.length < 600) ids.push(newVmId(usersOf[ids.length % usersOf.length], ids))
    assert.equal(new Set(ids.map(rootBase)).size, ids.length)
  })

  it("finds a user's range by name or number, if it is large enough", () => {
    const dir = mkdtempSync(join(tmpdir(), 'nt-subuid-'))
    const file = join(dir, 'subuid')
    writeFileSync(file, 'ann:100000:65536\nbob:200000:10\n1003:300000:65536\n\nodd\n')
    try {
      assert.deepEqual(subordinate(file, 'ann', 1001), [100000, 65536])
      assert.equal(subordinate(file, 'bob', 1002), undefined)
      assert.deepEqual(subordinate(file, 'eve', 1003), [300000, 65536])
      assert.equal(subordinate(join(dir, 'absent'), 'ann', 1001), undefined)
    } finally {
      rmSync(dir, { recursive: true })
    }
  })
})

describe('users of a VM', () => {
  const passwd = 'root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001:Ann,,,:/home/ann:/bin/sh\nodd\n:::\n'
  const group = 'root:x:0:\nann:x:1001:\nwheel:x:10:ann\n'
  it('are found by name and number, with a group of choice', () => {
    assert.deepEqual(findUser('ann', passwd, group), { name: 'ann', uid: 1000, gid: 1001, home: '/home/ann' })
    assert.equal(findUser('1000', passwd, group)?.name, 'ann')
    assert.equal(findUser('ann:wheel', passwd, group)?.gid, 10)
    assert.equal(findUser('ann:5', passwd, group)?.gid, 5)
    assert.deepEqual(findUser('77', passwd, group), { name: '77', uid: 77, gid: 77, home: '/' })
    assert.equal(findUser('eve', passwd, group), undefined)
    assert.equal(findUser('ann:none', passwd, group), undefined)
    assert.equal(findUser('-1', passwd, group), undefined)
  })
  it('never become numbers that are none, whatever the files hold', () => {
    fc.assert(
      fc.property(fc.string(), fc.string(), fc.string(), (spec, p, g) => {
        const u = findUser(spec, p, g)
        assert.ok(u === undefined || (Number.isInteger(u.uid) && Number.isInteger(u.gid)))
      }),
    )
  })
})

describe('files of a VM', () => {
  it('say what their manual pages ask for', () => {
    assert.equal(resolvConf({ servers: ['10.0.0.2'], search: ['a', 'b'] }), 'nameserver 10.0.0.2\nsearch a b\n')
    assert.match(resolvConf(undefined), /^#/)
    assert.match(hosts('web', '10.0.0.9'), /^10\.0\.0\.9\tweb\.noid\.internal web$/m)
    assert.doesNotMatch(hosts('web'), /web/)
    assert.match(interfaces(), /^auto eth0\niface eth0 inet dhcp$/m)
  })
  it('hold no password', () => {
    assert.equal(
      lockedShadow('root:x:0:0::/root:/bin/sh\n\nann:$6$hash:1:1::/:\n'),
      'root:*:19000:0:99999:7:::\nann:*:19000:0:99999:7:::\n',
    )
    assert.equal(lockedGshadow('wheel:x:10:ann\n'), 'wheel:*::\n')
  })
})

describe('mountinfo', () => {
  const text = [
    '22 1 254:0 / / rw,relatime - ext4 /dev/vda rw',
    '23 22 254:1 / /usr ro,nodev,relatime shared:1 - ext4 /dev/vdb rw',
    '24 22 254:2 / /var/lib/a\\040b rw,nosuid,noexec - xfs /dev/vdc rw',
    '25 22 0:5 / /var/run rw - tmpfs tmpfs rw',
    '26 22 254:3 / /home rw,nosuid - ext4 /dev/vdd rw',
  ].join('\n')
  const mounts = readMounts(text)
  it('tells the parts of the system that are file systems of their own', () => {
    assert.deepEqual(
      systemMounts(mounts).map((m) => m.path),
      ['/usr', '/var/lib/a b'],
    )
  })
  it('tells the flags that a bind must keep', () => {
    assert.deepEqual(lockedFlags('/usr', mounts), ['nodev'])
    assert.deepEqual(lockedFlags('/usr/share', mounts), ['nodev'])
    assert.deepEqual(lockedFlags('/var/lib/a b', mounts), ['nosuid', 'noexec'])
    assert.deepEqual(lockedFlags('/opt', mounts), [])
  })
})

describe('the stage script', () => {
  it('quotes what it is given', () => {
    const hostile = `a'b; touch /nt-hostile; '`
    const script = stageScript({
      name: hostile,
      base: '/mnt',
      plan: { kind: 'directory', path: hostile, binds: [] },
      range: true,
      binds: [],
    })
    const quoted = `'a'\\''b; touch /nt-hostile; '\\'''`
    assert.ok(script.includes(`exec 4<${quoted}`))
    assert.ok(script.includes(`hostname ${quoted}`))
    assert.equal(script.split(quoted).length - 1, 3)
    assert.equal(script.split('touch').length - 1, 3)
  })
  it('escapes what ends a word in the options of an overlay', () => {
    assert.equal(overlayPath('/a:b,c\\d'), '/a\\:b\\,c\\\\d')
  })
})
