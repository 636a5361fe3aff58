// The cni backend keeps the contract with Debian's plugins: bridge, host-local, portmap, firewall.
import { writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { descriptor } from '../../src/plugins/cni/index.ts'
import { conformance } from '../../src/plugins/conformance/index.ts'
import { ownHost } from '../plugins/own-host.ts'
import { needsPlugins, PLUGINS } from './needs.ts'

const skip = needsPlugins('bridge', 'host-local', 'portmap', 'firewall') || ownHost()

const conflist = {
  cniVersion: '1.0.0',
  name: `ntkit${process.pid}`,
  plugins: [
    {
      type: 'bridge',
      bridge: 'ntcni0',
      isGateway: true,
      ipMasq: true,
      hairpinMode: true,
      ipam: { type: 'host-local', subnet: '10.209.7.0/24', routes: [{ dst: '0.0.0.0/0' }] },
    },
    { type: 'portmap', capabilities: { portMappings: true } },
    { type: 'firewall' },
  ],
}

// As on a machine that never had containers: the bridge plugin switches it on for the whole host.
if (skip === false) writeFileSync('/proc/sys/net/ipv4/ip_forward', '0')
if (skip === false) conformance(test as never, descriptor, { config: { conflist, binDirs: [PLUGINS] } })
else test('the cni backend passes the kit', { skip }, () => {})
