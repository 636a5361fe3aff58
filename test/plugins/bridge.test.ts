// The bridge backend keeps the contract, with the kernel's bridge and iptables, and leaves the host as it was.
import { spawnSync } from 'node:child_process'
import { test } from 'node:test'
import { descriptor } from '../../src/plugins/bridge/index.ts'
import { conformance } from '../../src/plugins/conformance/index.ts'
import { missing } from './needs.ts'
import { ownHost } from './own-host.ts'

const tool = ['iptables-restore', 'ebtables-restore', 'bridge', 'conntrack'].find(
  (t) => spawnSync('sh', ['-c', `command -v ${t}`]).status !== 0,
)
const skip = missing() || (tool === undefined ? false : `needs ${tool}`) || ownHost()

if (skip === false) conformance(test as never, descriptor)
else test('the bridge backend passes the kit', { skip }, () => {})
