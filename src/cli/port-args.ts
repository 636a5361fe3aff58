/** `[NAME] SPEC...`: a name begins with a letter and has no colon, a port spec begins with a digit, `[` or `*`. */
import { NoidError } from '../errors.ts'
import { vmNamed } from './active.ts'

export function nameAndSpecs(words: readonly string[], verb: string): { name: string; specs: string[] } {
  const first = words[0]
  const named = first !== undefined && /^[a-z]/i.test(first)
  const specs = named ? words.slice(1) : [...words]
  if (specs.length === 0) {
    throw new NoidError('INVALID_INPUT', {
      what: 'no port was given',
      hint: `for example: noid port ${verb} ${named ? first : 'NAME'} 8080:80`,
    })
  }
  return { name: vmNamed(named ? first : undefined), specs: [...specs] }
}
