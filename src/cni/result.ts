/** An attachment of noid's as a CNI result, in the shape of the version asked for, and compared with one that is held against it. */
import type { Attached } from '../api/contract.ts'
import { atLeast, CniError, code } from './protocol.ts'

export function resultOf(a: Attached, cniVersion: string): Record<string, unknown> {
  const six = (address: string): boolean => address.includes(':')
  const gateways = new Map(['0.0.0.0/0', '::/0'].map((to) => [six(to), a.routes.find((r) => r.to === to)?.via]))
  return {
    cniVersion,
    interfaces: [
      { name: a.ifname, mac: a.mac, ...(atLeast(cniVersion, '1.1.0') ? { mtu: a.mtu } : {}), sandbox: a.netns },
    ],
    ips: a.addresses.map((address) => {
      const gateway = gateways.get(six(address))
      return {
        ...(atLeast(cniVersion, '1.0.0') ? {} : { version: six(address) ? '6' : '4' }),
        interface: 0,
        address,
        ...(gateway === undefined ? {} : { gateway }),
      }
    }),
    routes: a.routes.map((r) => ({ dst: r.to, ...(r.via === undefined ? {} : { gw: r.via }) })),
    dns:
      a.dns === null
        ? {}
        : {
            nameservers: a.dns.servers,
            ...(a.dns.search[0] === undefined ? {} : { domain: a.dns.search[0] }),
            search: a.dns.search,
          },
  }
}

/** CHECK: the interface and the addresses of the result that the engine has kept are the ones that are. Later plugins may have added others. */
export function mustMatch(a: Attached, prevResult: Record<string, unknown>): void {
  const list = (x: unknown): Record<string, unknown>[] => (Array.isArray(x) ? x : [])
  const inside = list(prevResult.interfaces).find((i) => i.name === a.ifname && i.sandbox)
  if (inside === undefined)
    throw new CniError(code.invalidConfig, `prevResult has no interface ${a.ifname} in the container`)
  if (typeof inside.mac === 'string' && inside.mac !== '' && inside.mac.toLowerCase() !== a.mac.toLowerCase())
    throw new CniError(code.differs, `${a.ifname} has the MAC address ${a.mac}, prevResult ${inside.mac}`)
  const told = list(prevResult.ips).map((ip) => ip.address)
  const missing = a.addresses.find((x) => !told.includes(x))
  if (missing !== undefined)
    throw new CniError(code.differs, `${a.ifname} has ${missing}, prevResult ${told.join(', ')}`)
}
