// The userspace backend keeps the contract, with real TAPs and a real data plane.
import { existsSync } from 'node:fs'
import { test } from 'node:test'
import { conformance } from '../../src/plugins/conformance/index.ts'
import { descriptor } from '../../src/plugins/userspace/index.ts'
import { missing } from './needs.ts'
import { ownHost } from './own-host.ts'

const skip = missing() || (existsSync('/dev/net/tun') ? false : 'needs /dev/net/tun') || ownHost()

if (skip === false) conformance(test as never, descriptor)
else test('the userspace backend passes the kit', { skip }, () => {})
