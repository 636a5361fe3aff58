/** `--mount SRC:DST[:ro]`: SRC of this machine, from where the command is run; DST in the VM. */
import { resolve } from 'node:path'
import type { CreateVm } from '../api/contract.ts'
import { NoidError } from '../errors.ts'

export function parseMount(text: string): NonNullable<CreateVm['mounts']>[number] {
  const [source = '', target = '', ...rest] = text.split(':')
  const last = rest[0] ?? 'rw'
  if (source === '' || !target.startsWith('/') || rest.length > 1 || (last !== 'ro' && last !== 'rw'))
    throw new NoidError('INVALID_INPUT', {
      what: `"${text}" is not a mount`,
      hint: 'write SRC:DST or SRC:DST:ro, for example: ./site:/srv/site:ro',
    })
  return { source: resolve(source), target, readonly: last === 'ro' }
}
